"""Files of a data set on the hub: one split of one configuration, fetched into the cache.

What belongs to a split is said by the head of the data set's README.md (`configs`), else by the files' names: the words
train, validation, test and their like in a file's or folder's name, as the hub itself reads them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from luthier.corpus.documents.find import find_files
from luthier.errors import DataError, did_you_mean
from luthier.files import cache_folder
from luthier.recipe.corpus import Input

HUB = "hub:"
README = "README.md"
PACKED = ("", ".gz", ".zst")
TABLES = (".jsonl", ".json", ".csv", ".tsv")
PATTERNS = ("*.parquet", *(f"*{ending}{packed}" for ending in TABLES for packed in PACKED))
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # what describes a data set
SPLIT = "train"
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
WORDS = re.compile(r"[^A-Za-z0-9]+")
Globs = dict[str, list[str]]  # patterns of files by split


@dataclass(frozen=True)
class Found:
    """The files of an input, and what of its data set was left out, in words; empty where nothing was."""

    files: list[Path]
    left_out: str = ""


def source_files(source: Input) -> list[Path]:
    """The files an input names, on this machine or on the hub; DataError where there are none."""
    return found_files(source).files


def found_files(source: Input) -> Found:
    """The same, with what was left out.

    Raises:
        DataError: nothing is there; a split or configuration that the data set does not have, or several
            configurations and none named; or one that is named for files on this machine.
    """
    if source.path.startswith(HUB):
        return hub_files(source)
    named = next((key for key in ("split", "config") if getattr(source, key)), None)
    if named:
        raise DataError(
            f"{source.path}: {named} is for data sets of the hub ({HUB}OWNER/NAME). Name the files instead."
        )
    return Found(find_files(source.path))


def hub_files(source: Input) -> Found:
    """One split of a hub data set: `hub:OWNER/NAME`, or the files that a path or glob behind it names."""
    owner, _, rest = source.path.removeprefix(HUB).partition("/")
    name, _, inside = rest.partition("/")
    if not owner or not name:
        raise DataError(
            f'"{source.path}": write {HUB}OWNER/NAME, or {HUB}OWNER/NAME/PATH with * for any part of a name.'
        )
    folder = cache_folder("datasets") / f"{owner}--{name}"
    hub_id = f"{owner}/{name}"
    if inside:
        fetch(source.path, hub_id, [inside], folder)
        files = find_files(str(folder / inside))
        return of_split(source, data_files(folder, files)) if source.split else Found(files)
    failed = fetch_from_hub(hub_id, [README], folder)
    configs = configs_of(folder / README)
    if configs:
        chosen = chosen_config(source, configs)
        globs = configs[chosen].globs
        fetch(source.path, hub_id, globs.get(wanted(source)) or list(PATTERNS), folder, failed)
        return of_split(source, by_globs(folder, globs), [name for name in configs if name != chosen])
    fetch(source.path, hub_id, list(PATTERNS), folder, failed)
    files_by_split = data_files(folder, find_files(str(folder)))
    by_config = by_folder(folder, files_by_split)
    if source.config is None and len(by_config) < 2:
        return of_split(source, files_by_split)
    chosen = chosen_config(source, {name: Config({}) for name in by_config})
    return of_split(source, by_config[chosen], [name for name in by_config if name != chosen])


def wanted(source: Input) -> str:
    """The split that an input asks for."""
    return source.split or SPLIT


def fetch(path: str, hub_id: str, patterns: list[str], folder: Path, failed: str | None = None) -> None:
    """Bring files into the cache. Without a network (`failed` before) what is there already is good enough."""
    failed = failed or fetch_from_hub(hub_id, patterns, folder)
    if failed is not None and not folder.is_dir():
        raise DataError(
            f"{path}: could not be fetched from the hub ({failed}). Check the name and the network, or fetch the "
            "files by hand and name their folder."
        )


def fetch_from_hub(hub_id: str, patterns: list[str], folder: Path) -> str | None:
    """Bring a data set's files into a folder; returns what kept them away, None where nothing did."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns, local_dir=folder, etag_timeout=5)
    except Exception as error:  # noqa: BLE001  (the hub's client has many, by cause and by version)
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


# --- configurations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """A configuration as the README tells it: the globs of each split, and whether it is the one to take."""

    globs: Globs
    default: bool = False


def configs_of(readme: Path) -> dict[str, Config]:
    """The configurations in the head of a README.md, by name; none where it names no files."""
    try:
        text = readme.read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    listed = head.get("configs") if isinstance(head, Mapping) else None
    found: dict[str, Config] = {}
    for entry in listed if isinstance(listed, list) else []:
        globs = globs_of(entry) if isinstance(entry, Mapping) else {}
        if globs:
            name = str(entry.get("config_name", "default"))
            found[name] = Config(globs, entry.get("default") is True or name == "default")
    return found


def globs_of(entry: Mapping[str, Any]) -> Globs:
    """Patterns by split of one entry of `configs`: a pattern, a list of them, or a list of splits with theirs."""
    files = entry.get("data_files")
    files = files if isinstance(files, list) else [files]
    globs: Globs = {}
    base = f"{str(entry['data_dir']).strip('/')}/" if entry.get("data_dir") else ""
    for item in files:
        split, paths = (item.get("split", SPLIT), item.get("path")) if isinstance(item, Mapping) else (SPLIT, item)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                globs.setdefault(str(split), []).append(base + path)
    return globs


def chosen_config(source: Input, configs: Mapping[str, Config]) -> str:
    """The configuration to read: the named one, the only one, or the one that the data set gives as its default."""
    if source.config is not None:
        if source.config not in configs:
            hint = did_you_mean(source.config, configs)
            there = listing(configs) or "none"
            raise DataError(f'{source.path}: no configuration "{source.config}"; there is {there}.{hint}')
        return source.config
    defaults = [name for name, config in configs.items() if config.default]
    if len(configs) == 1 or len(defaults) == 1:
        return defaults[0] if defaults else next(iter(configs))
    raise DataError(
        f"{source.path}: has {len(configs)} configurations: {listing(configs)}. Say which: {{path: {source.path}, "
        f"config: {next(iter(configs))}}}."
    )


def listing(names: Sequence[str] | Mapping[str, Any], most: int = 20) -> str:
    """Names in a sentence."""
    shown = ", ".join(list(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


# --- splits ---------------------------------------------------------------------------------------------------------


def by_globs(folder: Path, globs: Globs) -> dict[Path, str]:
    """The split of each file that is there; of a split without files, the pattern in the place of a file."""
    found: dict[Path, str] = {}
    for path in find_files(str(folder)):
        name = path.relative_to(folder).as_posix()
        for split, patterns in globs.items():
            if any(fnmatch(name, pattern.removeprefix("./")) for pattern in patterns):
                found[path] = split
                break
    return found | {folder / patterns[0]: split for split, patterns in globs.items() if split not in found.values()}


def data_files(folder: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """The split of each file of rows by its name; where no name says one, all are for training."""
    rows = [path for path in paths if path.name not in NO_ROWS and any(fnmatch(path.name, p) for p in PATTERNS)]
    found = {path: split_in(path.relative_to(folder)) for path in rows}
    return found if any(found.values()) else dict.fromkeys(rows, SPLIT)


def split_in(path: Path) -> str:
    """The split that a name says, the file's before its folders'; empty where none does."""
    for part in reversed(path.parts):
        words = WORDS.split(re.sub(r"\d+", "", part).lower())
        for split, keywords in SPLIT_WORDS.items():
            if any(word in keywords for word in words):
                return split
    return ""


def by_folder(folder: Path, files: Mapping[Path, str]) -> dict[str, dict[Path, str]]:
    """Files by the folder they lie in, where several hold training rows; `data` and names of splits are no folders."""
    found: dict[str, dict[Path, str]] = {}
    for path, split in files.items():
        parts = [part for part in path.relative_to(folder).parts[:-1] if part != "data" and not split_in(Path(part))]
        found.setdefault("/".join(parts), {})[path] = split
    named = {name: own for name, own in found.items() if name}
    return named if sum(SPLIT in own.values() for own in named.values()) > 1 else {}


def of_split(source: Input, files: Mapping[Path, str], others: Sequence[str] = ()) -> Found:
    """The files of the split that is asked for; DataError where there is none, or none has come."""
    split = wanted(source)
    counts = Counter(found for found in files.values() if found)
    chosen = sorted(path for path, found in files.items() if found == split)
    if not chosen:
        there = ", ".join(counts) or "none"
        raise DataError(
            f'{source.path}: has no split "{split}"; there is {there}. Say which: {{path: {source.path}, '
            f"split: {next(iter(counts), SPLIT)}}}, or name files: {source.path}/PATH."
        )
    missing = [path for path in chosen if not path.is_file()]
    if missing:
        raise DataError(
            f'{source.path}: the files of the split "{split}" ({missing[0].name}) are neither in the cache nor could '
            "they be fetched from the hub. Check the network."
        )
    return Found(chosen, left_out(source, split, [name for name in counts if name != split], files, others))


def left_out(source: Input, split: str, splits: Sequence[str], files: Mapping[Path, str], others: Sequence[str]) -> str:
    """What is not read, in words."""
    unnamed = [path.name for path, found in files.items() if not found]
    parts = [f"the splits {listing(splits)}" if len(splits) > 1 else f"the split {splits[0]}"] if splits else []
    parts += [f"the configurations {listing(others)}"] if others else []
    parts += [f"files of no split ({listing(unnamed, 3)})"] if unnamed else []
    return f"{source.path}: the split {split} is read; left out: {'; '.join(parts)}." if parts else ""
