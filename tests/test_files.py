"""Files are whole or not there, and a full or closed disk says what to do."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from luthier import run_folder
from luthier.errors import RunError
from luthier.files import (
    check_folder,
    content_hash,
    new_folder,
    require_whole,
    restore_below,
    sha256,
    write_checksums,
    write_json,
    write_text,
)
from luthier.run_folder import RunFolder

ON_FULL = "the disk is full. Free some space and run the same command again: it goes on where it stopped."
CAUSES = [
    (OSError(errno.ENOSPC, "No space left on device"), ON_FULL),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), ON_FULL),
    (OSError(errno.EROFS, "Read-only file system"), "the folder is read-only. Give another one with --out."),
    (PermissionError(errno.EACCES, "Permission denied"), "no permission to write there. Give another folder with --out."),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "a part of the path is a file. Give another folder with --out."),
]  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei ☃")
    assert path.read_text(encoding="utf-8") == "zwei ☃" and names(path.parent) == ["a.txt"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")  # a lone surrogate: the write fails midway
    assert json.loads(path.read_text()) == {"loss": 1.5} and names(tmp_path) == ["a.json"]


def test_a_folder_appears_whole_with_its_checksums(tmp_path):
    path = tmp_path / "out"
    with new_folder(path) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "b.bin").write_bytes(b"\x00\x01")
        (aside / "a.txt").write_text("a")
        assert not path.exists()
    assert names(path) == ["a.txt", "checksums.json", "sub"] and names(tmp_path) == ["out"]
    assert json.loads((path / "checksums.json").read_text()) == {
        "a.txt": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "sub/b.bin": sha256(path / "sub" / "b.bin"),
    }
    assert check_folder(path) == []


class Crash(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Crash])
def test_a_crash_in_the_block_leaves_the_old_folder(error, tmp_path):
    path = tmp_path / "out"
    with new_folder(path) as aside:
        (aside / "a.txt").write_text("old")
    with pytest.raises(error), new_folder(path) as aside:
        (aside / "a.txt").write_text("new")
        raise error
    assert (path / "a.txt").read_text() == "old" and check_folder(path) == [] and names(tmp_path) == ["out"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "out"
    with new_folder(path) as aside:
        (aside / "a.txt").write_text("old")
    rename = Path.rename

    def fail_on_the_new_one(self, target):
        if Path(target) == path and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"), new_folder(path) as aside:
        patch.setattr(Path, "rename", fail_on_the_new_one)
    assert (path / "a.txt").read_text() == "old" and names(tmp_path) == ["out"]


def test_a_second_folder_replaces_the_first(tmp_path):
    path = tmp_path / "out"
    for name in ("first.txt", "second.txt"):
        with new_folder(path) as aside:
            (aside / name).write_text(name)
    assert names(path) == ["checksums.json", "second.txt"] and names(tmp_path) == ["out"]


def test_damage_is_named(tmp_path):
    path = tmp_path / "out"
    with new_folder(path) as aside:
        for name in ("a", "b", "c"):
            (aside / name).write_text(name)
    (path / "a").write_text("A")
    (path / "b").unlink()
    assert check_folder(path) == ["a", "b"]
    (path / "checksums.json").write_text("{")
    assert check_folder(path) == check_folder(tmp_path / "nowhere") == ["checksums.json"]


KILLED = """
import os, pathlib, sys
from luthier.files import new_folder, open_aside
stage = pathlib.Path(sys.argv[1])
with new_folder(stage / "reference") as aside, open_aside(stage / "note.json") as file:
    (aside / "weights").write_text("half")
    file.write(b"half")
    os.kill(os.getpid(), 9)
"""


def test_what_killed_writers_left_below_is_mended(tmp_path):
    """Half-written folders and files go. Between the two renames the old folder was moved away, the new one not yet in."""
    stage = tmp_path / "stages" / "02-dpo"
    for name in (".best.old", "reference", ".reference.old", ".bestial"):
        (stage / name).mkdir(parents=True)
        (stage / name / "weights").write_text(name)
    assert subprocess.run([sys.executable, "-c", KILLED, stage], check=False).returncode == -9
    assert len(names(stage)) == 6
    for _ in range(2):
        restore_below(tmp_path)
        assert names(stage) == [".bestial", "best", "reference"]
    assert (stage / "best" / "weights").read_text() == ".best.old"
    assert (stage / "reference" / "weights").read_text() == "reference"


@pytest.mark.parametrize(("error", "told"), CAUSES, ids=lambda value: type(value).__name__)
def test_a_disk_that_cannot_be_written_says_what_to_do(error, told, tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RunError) as caught, new_folder(path):
        raise error
    assert str(caught.value) == f"{path}: {told}" and names(tmp_path) == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="Too many open files"), new_folder(tmp_path / "out"):
        raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(SafetensorError, match="header too large"), new_folder(tmp_path / "out"):
        raise SafetensorError("header too large")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/out/a.txt: a part of the path is a file"):
        write_text(tmp_path / "file" / "out" / "a.txt", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_closed_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="no permission to write there"):
        write_text(tmp_path / "a.txt", "x")


def test_a_stage_is_done_again_for_other_inputs_and_other_code(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    counted = iter(range(9))

    def done(inputs):
        return folder.stage("arm", inputs, lambda: next(counted))

    assert [done("a"), done("a"), done("b"), done("b")] == [(0, False), (0, True), (1, False), (1, True)]
    assert folder.done("arm", "b") and not folder.done("arm", "a")
    monkeypatch.setattr(run_folder, "code_hash", lambda: "another version")
    assert not folder.done("arm", "b")
    assert [done("b"), done("b")] == [(2, False), (2, True)]


def test_the_hash_of_the_code_is_that_of_the_packages_asked_for():
    parts = [run_folder.code_hash(*packages) for packages in ((), ("forest",), ("report",), ("forest", "report"))]
    assert len(set(parts)) == 4


def test_content_hash_goes_by_content():
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": [1, 2], "a": 1})
    assert len({content_hash(*values) for values in ([1], ["1"], [[1]], [1, 1], [{"a": 1}], [{"a": 2}], [None])}) == 7


def test_others_may_read_what_the_users_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
        with new_folder(tmp_path / "out") as aside:
            write_text(aside / "b.txt", "y")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == (tmp_path / "out" / "b.txt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    require_whole(tmp_path)  # one without checksums is not judged
    with new_folder(tmp_path / "out") as aside:
        write_text(aside / "a.txt", "x")
    require_whole(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("y")
    with pytest.raises(RunError, match=r"a\.txt missing, or not as written"):
        require_whole(tmp_path / "out")
    write_checksums(tmp_path / "out")
    require_whole(tmp_path / "out")
    (tmp_path / "out" / "checksums.json").write_text("[1]")
    assert check_folder(tmp_path / "out") == ["checksums.json"]
