"""JSON values: an object of a line, the items of an array, read one by one."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from luthier.corpus.documents.unpack import open_bytes
from luthier.corpus.lines import HEAD_BYTES, Problem

HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
Row = tuple[int, Mapping[str, object] | Problem]
BETWEEN_ITEMS = re.compile(r"[\s,]*")


def json_type(value: object) -> str:
    """A value's JSON type, with its article."""
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def parse_object(text: str) -> tuple[dict[str, object] | None, Problem | None]:
    """A JSON object, or the problem with it."""
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}"
    except RecursionError:
        found = "nested too deeply"
    except ValueError as error:  # a number with thousands of digits
        found = str(error)
    else:
        if isinstance(value, dict):
            return value, None
        return None, Problem("wrong_type", f"the line is {json_type(value)}, not a JSON object.")
    return None, Problem("broken_json", f"not valid JSON: {found}. Write one JSON object a line.")


def whole_characters(text: str, values: Mapping[str, object]) -> Mapping[str, object] | Problem:
    """The values, or the problem that an escape in their JSON text is half a character no file can hold."""
    if HALF_CHARACTER.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Problem("encoding", "the row holds half a character (a lone \\ud... escape).")
    return values


def array_rows(path: Path, limits: tuple[int, int]) -> Iterator[Row]:
    """The items of a JSON array, decoded as the file is read; `limits[0]` is the most one item may hold."""
    with open_bytes(path, limits[1]) as stream:
        items = ArrayItems(stream, limits[0])
        number = 0
        while (item := items.next()) is not None:
            number += 1
            yield number, item


class ArrayItems:
    """Takes one item after the other off a stream. Holds one item's text and at most as much again.

    Where an item does not parse yet, as much again is read before the next try, so that the work stays linear.
    """

    def __init__(self, stream: BinaryIO, max_item_bytes: int):
        self.stream = stream
        self.max_item_bytes = max_item_bytes
        self.decoder = json.JSONDecoder()
        self.decode = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.position = 0
        self.ended = False
        self.over = False

    def next(self) -> Mapping[str, object] | Problem | None:
        """The next object, or its problem; None after the last. After a problem with the array itself: None."""
        try:
            if not self.text and not self.over:
                self.read_more(HEAD_BYTES)
                self.position = self.text.index("[") + 1
            return None if self.over else self.take()
        except UnicodeDecodeError as error:
            self.over = True
            return Problem("encoding", f"not UTF-8 ({error.reason}); the rest is not read. Save the file as UTF-8.")

    def take(self) -> Mapping[str, object] | Problem | None:
        """The item at the position, reading on until it is whole."""
        while True:
            self.position = BETWEEN_ITEMS.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.text.startswith("]", self.position):
                self.over = True
                return None
            try:
                item, end = self.decoder.raw_decode(self.text, self.position)
            except (ValueError, RecursionError) as error:
                if not self.ended and len(self.text) - self.position <= self.max_item_bytes:
                    self.read_more(max(HEAD_BYTES, len(self.text) - self.position))
                    continue
                return self.give_up(error)
            if end == len(self.text) and not self.ended:  # a number may go on
                self.read_more(HEAD_BYTES)
                continue
            source, self.position = self.text[self.position : end], end
            return self.checked(item, source)

    def checked(self, item: object, source: str) -> Mapping[str, object] | Problem:
        """An object whose size and characters are in order."""
        if len(source) > self.max_item_bytes:
            return Problem("line_too_long", f"the item is longer than {self.max_item_bytes:,} bytes.")
        if not isinstance(item, dict):
            return Problem("wrong_type", f"the item is {json_type(item)}, not a JSON object.")
        return whole_characters(source, item)

    def give_up(self, error: Exception) -> Problem:
        """No item can be told from the next any more."""
        self.over = True
        if not self.ended:
            detail = f"the item is longer than {self.max_item_bytes:,} bytes; the rest of the array is not read."
            return Problem("line_too_long", detail)
        found = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        if not self.text[self.position :].strip():
            found = "the array is not closed: is the file cut short?"
        advice = "The rest of the array is not read. Write one JSON object a line (JSON lines)."
        return Problem("broken_json", f"not valid JSON: {found}. {advice}")

    def read_more(self, num_bytes: int) -> None:
        """Further text behind what is not used up yet."""
        chunk = self.stream.read(num_bytes)
        self.ended = not chunk
        self.text = self.text[self.position :] + self.decode.decode(chunk, self.ended)
        self.position = 0
