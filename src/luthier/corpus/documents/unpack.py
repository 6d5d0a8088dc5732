"""Bytes of a file, unpacked where it is compressed, and never more of them than allowed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from luthier.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_FILE_BYTES = 1024**3
COMPRESSED = (".gz", ".zst")
ZSTD_WINDOW_BYTES = 2**27  # what the zstd command allows unasked
# a block of 4 bytes may unpack to 128 KiB: so much input at a time holds a bomb to 32 MiB before it is counted
ZSTD_INPUT_BYTES = 1024


class UnpackError(DataError):
    """A file that cannot be unpacked. `reason` is what the ledger counts by, `detail` the sentence without the path."""

    def __init__(self, path: Path, reason: str, detail: str):
        self.path = path
        self.reason = reason
        self.detail = detail
        super().__init__(f"{path}: {detail}")

    def __reduce__(self) -> tuple[type[UnpackError], tuple[Path, str, str]]:
        """So that it comes whole out of another process."""
        return UnpackError, (self.path, self.reason, self.detail)


def needs_extra(what: str) -> DataError:
    """The error for a library of the extra `data` that is not installed."""
    return DataError(f"{what} needs the data extra: pip install 'luthier[data]'")


def ending_of(path: Path) -> str:
    """What the file holds once it is unpacked, by its name: `.jsonl` for `rows.jsonl.gz`; lower case."""
    return inner_name(path)[1]


def inner_name(path: Path) -> tuple[str, str]:
    """Name and lower-case ending without the ending of a compression."""
    name = Path(path.name)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.name, name.suffix.lower()


@contextmanager
def open_bytes(path: Path, max_file_bytes: int = MAX_FILE_BYTES) -> Iterator[BinaryIO]:
    """A buffered stream of the file's bytes; .gz and .zst are unpacked as they are read.

    A plain file has no limit, for it is as large on disk as it is in memory: who reads it whole uses `read_bytes`.

    Raises:
        UnpackError: from any read, past `max_file_bytes` of unpacked bytes or where the compression is broken.
        OSError: the file cannot be opened.
    """
    kind = path.suffix.lower()
    with path.open("rb") as packed:
        if kind == ".gz":
            with gzip.GzipFile(fileobj=packed) as unpacked:
                yield bounded(path, cast("BinaryIO", unpacked), max_file_bytes, (zlib.error,))
        elif kind == ".zst":
            yield bounded(path, *zstd_stream(packed, max_file_bytes))
        else:
            yield packed


def zstd_stream(packed: BinaryIO, max_file_bytes: int) -> tuple[BinaryIO, int, tuple[type[Exception], ...]]:
    """The unpacked stream of a .zst file, its limit, and what it raises where it is broken."""
    try:
        import zstandard
    except ImportError:
        raise needs_extra("reading .zst files") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    return cast("BinaryIO", ZstdFrames(packed, decompressor)), max_file_bytes, (zstandard.ZstdError,)


class ZstdFrames:
    """Unpacks frame after frame. The library's own reader takes a file that is cut short for a whole one."""

    def __init__(self, packed: BinaryIO, decompressor: Any):
        self.packed = packed
        self.decompressor = decompressor
        self.frame: Any = None
        self.input = b""
        self.output = io.BytesIO()

    def read(self, num_bytes: int) -> bytes:
        """Some of the next bytes; nothing at the end. EOFError where the last frame is not whole."""
        while not (chunk := self.output.read(num_bytes)):
            self.input = self.input or self.packed.read(ZSTD_INPUT_BYTES)
            if not self.input:
                if self.frame is not None:
                    raise EOFError("the file ends within a frame")
                return b""
            self.frame = self.frame or self.decompressor.decompressobj()
            self.output = io.BytesIO(self.frame.decompress(self.input))
            self.input = b""
            if self.frame.eof:
                self.input, self.frame = self.frame.unused_data, None
        return chunk


def bounded(path: Path, unpacked: BinaryIO, max_file_bytes: int, broken: tuple[type[Exception], ...]) -> BinaryIO:
    """A buffered reader over `unpacked` that ends in an UnpackError past the limit."""
    return io.BufferedReader(BoundedStream(path, unpacked, max_file_bytes, broken), 2**18)


class BoundedStream(io.RawIOBase):
    """Passes bytes on and counts them."""

    def __init__(self, path: Path, unpacked: BinaryIO, max_file_bytes: int, broken: tuple[type[Exception], ...]):
        self.path = path
        self.unpacked = unpacked
        self.max_file_bytes = max_file_bytes
        self.broken: tuple[type[Exception], ...] = (*broken, OSError, EOFError)
        self.left_bytes = max_file_bytes

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """The next bytes; never asks the unpacker for more than fits."""
        view = memoryview(buffer)
        try:
            chunk = self.unpacked.read(len(view))
        except self.broken as error:
            detail = f"the compressed file is damaged or cut short ({error}). Copy or write it again."
            raise UnpackError(self.path, "broken_file", detail) from error
        self.left_bytes -= len(chunk)
        if self.left_bytes < 0:
            raise too_large(self.path, self.max_file_bytes)
        view[: len(chunk)] = chunk
        return len(chunk)


def too_large(path: Path, max_file_bytes: int) -> UnpackError:
    """The error for a file that holds more than allowed (a zip bomb, or a really large one)."""
    detail = f"holds more than {max_file_bytes:,} bytes unpacked. If it is what it should be, raise max_file_bytes."
    return UnpackError(path, "too_large", detail)


def read_bytes(path: Path, max_file_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The whole file, unpacked.

    Raises:
        UnpackError: more than `max_file_bytes`, or a broken compression.
        DataError: the file cannot be opened or read.
    """
    try:
        with open_bytes(path, max_file_bytes) as stream:
            raw = stream.read(max_file_bytes + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.") from error
    if len(raw) > max_file_bytes:
        raise too_large(path, max_file_bytes)
    return raw
