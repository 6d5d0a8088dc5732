import os
import signal

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


@pytest.fixture
def luthier(monkeypatch, capsys):
    """Call the entry point: luthier("run", "x.yaml") -> (exit code, stdout, stderr)."""

    from luthier.cli.main import main

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["luthier", *map(str, words)])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        told = capsys.readouterr()
        assert "Traceback" not in told.out + told.err
        return code, told.out, told.err

    return call
