"""Models behind an address: any server that speaks the OpenAI protocol, and the generator that asks one."""

from __future__ import annotations

import email.utils
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from luthier.errors import ModelError
from luthier.recipe.synthetic import Writer
from luthier.synthetic.base import Reply, Request, as_dicts, failed

FIRST_PAUSE_SECONDS = 1.0
GIVE_UP_AFTER = 20  # failed requests in a row: the server is gone, or takes none of them
PASSING = (408, 409, 425, 429)  # client errors that may be gone at the next try
SHOWN_CHARS = 300
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer: its status, its headers' Retry-After, and its body up to the limit."""

    status: int
    retry_after: str | None
    body: bytes
    too_long: bool = False


@dataclass(frozen=True)
class Fields:
    """What the recipe calls the settings that an error speaks of."""

    key: str = "writer.key_variable"
    address: str = "writer.base_url"
    model: str = "writer.model"
    demands: str = "writer.concurrency, draws.max_new_tokens"


@dataclass
class Endpoint:
    """One path of a server, `concurrency` requests at a time. The key is read once, sent as a header, never shown."""

    settings: Writer
    key: str | None = field(default=None, repr=False)
    sleep: Callable[[float], object] | None = None
    path: str = "/chat/completions"
    fields: Fields = field(default_factory=Fields)

    def __post_init__(self) -> None:
        assert self.settings.base_url is not None, "the recipe's checks ask for an address"
        self.closing = threading.Event()
        self.failed_in_a_row = 0
        self.url = self.settings.base_url.rstrip("/") + self.path
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        host = urlsplit(self.url).hostname or ""
        self.client = httpx2.Client(
            headers={**headers, "User-Agent": "luthier"},
            timeout=self.settings.timeout_seconds,
            follow_redirects=False,  # the key goes to the address in the recipe and nowhere else
            trust_env=host not in LOOPBACK,
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
        )

    @property
    def identity(self) -> str:
        """Address and model. The server may change what stands behind them; we cannot know."""
        return f"endpoint {self.url} {self.settings.model}"

    def ask_each(self, bodies: Sequence[tuple[dict[str, Any], str]]) -> list[Answer | str]:
        """The answer to each (body, key), or the error of one that cannot be got after all retries.

        Raises:
            ModelError: the server refuses the key, knows no such model or address, or fails many times in a row.
        """
        self.closing.clear()
        with ThreadPoolExecutor(min(self.settings.concurrency, max(len(bodies), 1))) as pool:
            waiting = [pool.submit(self.ask, body, key) for body, key in bodies]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                self.closing.set()  # nobody waits for another try
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def ask(self, body: dict[str, Any], key: str) -> Answer | str:
        """One request with its retries; `key` tells it from the others.

        Raises:
            ModelError: nothing can work, or too many requests in a row have failed.
        """
        error, tries = "", 0
        for attempt in range(self.settings.retries + 1):
            tries += 1
            retry_after, passing = None, True
            try:
                answer = self.post(body)
            except httpx2.TimeoutException:
                error = f"no answer within {self.settings.timeout_seconds:g} seconds"
            except httpx2.HTTPError as problem:
                error = f"the connection failed: {self.clean(str(problem)) or type(problem).__name__}"
            else:
                if answer.status == 200:
                    self.failed_in_a_row = 0
                    return answer
                self.refuse(answer)
                error, retry_after = f"HTTP {answer.status}: {self.message(answer)}", answer.retry_after
                passing = answer.status in PASSING or answer.status >= 500
            if not passing or self.closing.is_set() or attempt == self.settings.retries:
                break
            pause = pause_seconds(attempt, retry_after, key, self.settings.max_wait_seconds)
            (self.sleep or self.closing.wait)(pause)
        return self.give_up(f"{error} (tried {tries} times)" if tries > 1 else error)

    def give_up(self, error: str) -> str:
        """The error; after many in a row, the end of the run."""
        self.failed_in_a_row += 1
        if self.failed_in_a_row < GIVE_UP_AFTER:
            return error
        raise ModelError(
            f"{self.url}: {self.failed_in_a_row} requests in a row failed; the last: {error}. Check that the server "
            f"runs and takes what the recipe asks of it ({self.fields.demands}). Run the same command again: replies "
            "so far are kept."
        )

    def post(self, body: dict[str, Any]) -> Answer:
        """Send it and read no more of the answer than the limit, nor longer than the time allowed."""
        limit, until = self.settings.max_reply_bytes, time.monotonic() + self.settings.timeout_seconds
        got = bytearray()
        with self.client.stream("POST", self.url, json=body) as response:
            for chunk in response.iter_bytes(65_536):
                got += chunk
                if len(got) > limit:
                    break
                if time.monotonic() > until:
                    raise httpx2.ReadTimeout("the answer came too slowly")
            retry_after = response.headers.get("retry-after")
            return Answer(response.status_code, retry_after, bytes(got[:limit]), len(got) > limit)

    def refuse(self, answer: Answer) -> None:
        """End the run where no request can succeed before the user changes something."""
        said = f"{self.url} answers HTTP {answer.status}: {self.message(answer)}"
        if answer.status in (401, 403):
            variable = self.settings.key_variable
            what = (
                f"Check the key in {variable}" if variable else f"Set {self.fields.key} to the variable with your key"
            )
            raise ModelError(f"{said}. {what}, and that it may use this model.")
        if answer.status == 402:
            raise ModelError(f"{said}. The account has no credit left; replies so far are kept.")
        if answer.status == 404:
            raise ModelError(f'{said}. Check {self.fields.address} and {self.fields.model} ("{self.settings.model}").')
        if 300 <= answer.status < 400:
            raise ModelError(f"{said}. It redirects elsewhere; give the final address as {self.fields.address}.")

    def message(self, answer: Answer) -> str:
        """What the server says about an error, in one line."""
        try:
            value = json.loads(answer.body)
            error = value.get("error", value) if isinstance(value, dict) else value
            text = error.get("message", error) if isinstance(error, dict) else error
            return self.shown(str(text).encode())
        except (ValueError, RecursionError):
            return self.shown(answer.body)

    def shown(self, body: bytes) -> str:
        """The beginning of a body on one line, without the key."""
        text = " ".join(self.clean(body.decode("utf-8", "replace")).split())
        return text[:SHOWN_CHARS] or "(nothing)"

    def clean(self, text: str) -> str:
        """A text without the key in it: some servers repeat it."""
        return text.replace(self.key, "***") if self.key else text


@dataclass
class EndpointGenerator(Endpoint):
    """Answers requests in the chat protocol."""

    @classmethod
    def open(cls, settings: Writer, fields: Fields | None = None) -> EndpointGenerator:
        """With the key from the environment; ModelError where the recipe names a variable that is not set."""
        fields = fields or Fields()
        return cls(settings, key_of(settings, fields), fields=fields)

    @property
    def name(self) -> str:
        """The server's name of the model."""
        return self.settings.model

    @property
    def batch_rows(self) -> int:
        """Enough to keep all connections busy between two saves."""
        return 2 * self.settings.concurrency

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply each; what cannot be got after all retries is an error reply. Raises what `ask_each` does."""
        answers = self.ask_each([(self.body(request), request.key) for request in requests])
        return [failed(answer) if isinstance(answer, str) else self.read(answer) for answer in answers]

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent."""
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": as_dicts(request.messages),
            self.settings.length_parameter: request.max_new_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "seed": int(request.key[:7], 16),
        }
        if request.sampling.top_k:
            body["top_k"] = request.sampling.top_k
        return body

    def read(self, answer: Answer) -> Reply:
        """The reply in an answer, or what is wrong with it."""
        if answer.too_long:
            return failed(f"the answer is longer than {self.settings.max_reply_bytes:,} bytes")
        try:
            choice = json.loads(answer.body)["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return failed(f"the answer is no chat completion: {self.shown(answer.body)}")
        if reason == "content_filter":
            return failed("the server's content filter stopped the reply")
        if not isinstance(text, str):
            return failed("the answer holds no text")
        text = text.encode("utf-8", "replace").decode("utf-8")  # half characters cannot be written to a file
        return Reply(text, "length" if reason == "length" else "stop")


def key_of(settings: Writer, fields: Fields) -> str | None:
    """The server's key, from the environment.

    Raises:
        ModelError: the recipe names a variable that is not set, or one that holds no key.
    """
    name = settings.key_variable
    key = os.environ.get(name, "").strip() if name else None
    if name and not key:
        raise ModelError(f"{fields.key}: {name} is not set. Put the server's key into it: export {name}=...")
    if key and not (key.isascii() and key.isprintable()):
        raise ModelError(f"{fields.key}: what {name} holds is no key (it has characters a header cannot have).")
    return key


def pause_seconds(attempt: int, retry_after: str | None, key: str, most: float) -> float:
    """How long to wait before the next try: what the server asks for, else 1, 2, 4, ... seconds, less up to half.

    The part that is taken off follows from the request's key, so that requests that failed together come back
    apart. Never more than `most`.
    """
    asked = seconds_asked(retry_after)
    if asked is not None:
        return min(max(asked, 0.0), most)
    spread = int(key[:8], 16) / 0xFFFFFFFF
    return min(FIRST_PAUSE_SECONDS * 2**attempt, most) * (1 - spread / 2)


def seconds_asked(retry_after: str | None) -> float | None:
    """The Retry-After header, which is a number of seconds or an HTTP date; None where it is neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if seconds == seconds else None
