"""Replies that were paid for are kept: a file of them, by request, that a second run reads first.

One JSON object a line, only ever appended to. A line that a kill cut in half is skipped, and asked for again.
Errors are not kept, so that they are tried again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from luthier.errors import ModelError
from luthier.files import content_hash, explain_os_errors
from luthier.progress import Listener
from luthier.signals import Stop
from luthier.synthetic.base import Generator, Reply, Request


class Journal:
    """The replies of one generator. Another model's replies may stand in the same file; they are not found."""

    def __init__(self, path: Path, identity: str):
        self.path = path
        self.identity = identity
        self.replies: dict[str, Reply] = {}
        if path.exists():
            with explain_os_errors(path), path.open("rb") as file:
                self.replies = dict(known for line in file if (known := read_line(line)) is not None)

    def __len__(self) -> int:
        return len(self.replies)

    def key(self, request: Request) -> str:
        """The request's key with the generator's."""
        return content_hash(self.identity, request.key)

    def get(self, request: Request) -> Reply | None:
        """The reply that is there."""
        return self.replies.get(self.key(request))

    def add(self, pairs: Iterable[tuple[Request, Reply]]) -> None:
        """Append replies, on disk when this returns."""
        lines = []
        for request, reply in pairs:
            if reply.error is None:
                key = self.key(request)
                self.replies[key] = reply
                lines.append(json.dumps({"key": key, "text": reply.text, "finish_reason": reply.finish_reason}))
        if not lines:
            return
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell() and not ends_a_line(self.path):
                    file.write(b"\n")
                file.write(("\n".join(lines) + "\n").encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())


def ends_a_line(path: Path) -> bool:
    """Whether a file's last byte is a line end."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_line(line: bytes) -> tuple[str, Reply] | None:
    """Key and reply of one line; None for a damaged one."""
    try:
        value = json.loads(line)
        key, text, reason = value["key"], value["text"], value["finish_reason"]
    except (ValueError, KeyError, TypeError):
        return None
    whole = isinstance(key, str) and isinstance(text, str) and reason in ("stop", "length")
    return (key, Reply(text, reason)) if whole else None


def ask_all(
    generator: Generator, requests: Sequence[Request], journal: Journal, listener: Listener, stop: Stop
) -> list[Reply]:
    """A reply for each request: from the journal, else asked for now and kept, batch by batch.

    Raises:
        Stopped: on Ctrl-C or SIGTERM, after the batch at work was kept.
        ModelError: nothing can work, or every single request failed.
    """
    replies: dict[str, Reply] = {r.key: reply for r in requests if (reply := journal.get(r)) is not None}
    todo = list({r.key: r for r in requests if r.key not in replies}.values())
    first_error = ""
    for start in range(0, len(todo), generator.batch_rows):
        if stop.wanted:
            stop.leave(f"{len(journal):,} replies are kept in {journal.path.name}")
        batch = todo[start : start + generator.batch_rows]
        found = generator.generate(batch)
        assert len(found) == len(batch), "one reply for each request"
        journal.add(zip(batch, found, strict=True))
        replies |= {request.key: reply for request, reply in zip(batch, found, strict=True)}
        first_error = first_error or next((reply.error for reply in found if reply.error), "")
        listener.update(len(requests) - len(todo) + start + len(batch), len(requests))
    if requests and all(replies[request.key].error for request in requests):
        raise ModelError(f"none of {len(requests)} requests got a reply. The first says: {first_error}.")
    return [replies[request.key] for request in requests]
