"""A run is a folder: stages that are done stay done while their inputs do not change. No torch here."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.errors import RunError
from luthier.files import content_hash, write_json

NOT_CODE_OF_RESULTS = ("cli", "report")


class RunFolder:
    """Paths and finished stages of one run."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def training(self) -> Path:
        """Checkpoints and the best adapter so far."""
        return self.path / "training"

    @property
    def adapter(self) -> Path:
        """The finished adapter with its prompt."""
        return self.path / "adapter"

    def prepare(self, recipe_text: str) -> None:
        """Make the folder, proving that it can be written before anything is computed."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file. Give another folder with --out.")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "recipe.yaml").is_file():
            raise RunError(f"{self.path}: holds other files and is not a run folder. Give another folder with --out.")
        from luthier.files import write_text

        write_text(self.path / "recipe.yaml", recipe_text)

    def stage(self, name: str, inputs: Any, compute: Callable[[], Any]) -> tuple[Any, bool]:
        """(value, whether it was done before): a stage is computed once for its inputs and the code's version."""
        path = self.path / "stages" / f"{name}.json"
        key = content_hash(inputs, code_hash())
        stored = read_stage(path)
        if stored is not None and stored["key"] == key:
            return stored["value"], True
        value = compute()
        write_json(path, {"key": key, "value": value})
        return value, False

    def value(self, name: str) -> Any:
        """The value of a stage that is done."""
        stored = read_stage(self.path / "stages" / f"{name}.json")
        assert stored is not None, f"stage {name} comes first"
        return stored["value"]

    def done(self, name: str, inputs: Any) -> bool:
        """Whether a stage is finished for these inputs."""
        stored = read_stage(self.path / "stages" / f"{name}.json")
        return stored is not None and stored["key"] == content_hash(inputs, code_hash())


def read_stage(path: Path) -> dict[str, Any] | None:
    """A stored stage, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and "key" in value and "value" in value else None


@functools.cache
def code_hash(*packages: str) -> str:
    """Content hash of the package's own source, but for what only prints or draws; or of some packages of it."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if relative.parts[0] in packages if packages else relative.parts[0] not in NOT_CODE_OF_RESULTS:
            digest.update(f"{relative} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
