import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import pytest
from hypothesis import settings

# the same examples on every run, and no time limit that a busy machine could break
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A tiny model folder with a chat template (tests/tiny.py); read only."""
    from tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
