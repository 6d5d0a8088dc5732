"""The endpoint generator, against a real server on this machine."""

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from luthier.errors import ModelError
from luthier.generation.sampling import Sampling
from luthier.recipe.synthetic import Writer
from luthier.synthetic.base import Asking, Reply, Request, user
from luthier.synthetic.endpoint import GIVE_UP_AFTER, EndpointGenerator, pause_seconds

WARM = Sampling(temperature=0.8, seed=4)
ASKING = Asking(WARM, 60)
WARM = Sampling(temperature=0.8, seed=4)


def requests_of(*texts: str, tokens: int = 6) -> list[Request]:
    return [Request(user(text), WARM, tokens) for text in texts]


# --- the endpoint, against a server on this machine ----------------------------------------------------


def completion(text, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode()


@contextmanager
def serving(answer):
    """A server whose `answer(body, number of the request)` gives (status, headers, body)."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            status, headers, reply = answer(body, len(seen))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(reply)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the other side may have given up
                self.wfile.write(reply)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def endpoint(url: str, waits: list | None = None, key: str | None = None, **settings) -> EndpointGenerator:
    writer = Writer(engine="endpoint", model="big", base_url=url, **{"retries": 2, "concurrency": 2, **settings})
    return EndpointGenerator(writer, key, ([] if waits is None else waits).append)


def test_endpoint_answers():
    with serving(lambda body, n: (200, {}, completion(body["messages"][0]["content"].upper()))) as (url, seen):
        generator = endpoint(url, key="sk-secret")
        replies = generator.generate(requests_of("a", "b", "c", "d", "e"))
    assert [reply.text for reply in replies] == ["A", "B", "C", "D", "E"]
    path, authorization, body = seen[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer sk-secret")
    seed = body.pop("seed")
    assert body == {
        "model": "big", "messages": body["messages"], "max_tokens": 6, "temperature": 0.8, "top_p": 1.0,
    }  # fmt: skip
    assert seed == next(
        int(r.key[:7], 16) for r in requests_of("a", "b") if r.messages[0].content == body["messages"][0]["content"]
    )
    assert "sk-secret" not in repr(generator)


def test_endpoint_waits_as_it_is_told_and_tries_again():
    answers = {
        1: (429, {"Retry-After": "7"}, b"slow down"),
        2: (503, {}, b""),
        3: (200, {}, completion("ok", "length")),
    }
    waits = []
    with serving(lambda body, n: answers[n]) as (url, _):
        (reply,) = endpoint(url, waits).generate(requests_of("a"))
    assert reply == Reply("ok", "length")
    assert waits[0] == 7.0
    assert 1.0 <= waits[1] <= 2.0


def test_endpoint_failures_are_outcomes_and_do_not_end_the_run():
    def answer(body, n):
        return {
            "good": (200, {}, completion("fine")),
            "down": (500, {}, b'{"error": {"message": "out of\\nmemory"}}'),
            "broken": (200, {}, b"<html>proxy</html>"),
            "empty": (200, {}, completion(None)),
            "shape": (200, {}, b'{"choices": []}'),
            "filter": (200, {}, completion("x", "content_filter")),
            "long": (200, {}, completion("x" * 5000)),
            "bad": (400, {}, b'{"error": {"message": "context too long"}}'),
            "half": (200, {}, b'{"choices":[{"message":{"content":"a \\ud800 b"},"finish_reason":"stop"}]}'),
        }[body["messages"][0]["content"]]

    names = ["good", "down", "broken", "empty", "shape", "filter", "long", "bad", "half"]
    with serving(answer) as (url, seen):
        replies = dict(zip(names, endpoint(url, max_reply_bytes=2000).generate(requests_of(*names)), strict=True))
    assert replies["good"] == Reply("fine")
    assert replies["half"] == Reply("a ? b")
    errors = {name: reply.error for name, reply in replies.items() if reply.error}
    assert errors == {
        "down": "HTTP 500: out of memory (tried 3 times)",
        "broken": "the answer is no chat completion: <html>proxy</html>",
        "empty": "the answer holds no text",
        "shape": 'the answer is no chat completion: {"choices": []}',
        "filter": "the server's content filter stopped the reply",
        "long": "the answer is longer than 2,000 bytes",
        "bad": "HTTP 400: context too long",
    }
    assert Counter(body["messages"][0]["content"] for _, _, body in seen)["down"] == 3


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b'{"error": {"message": "Incorrect API key provided: sk-secret"}}',
         "answers HTTP 401: Incorrect API key provided: ***. Check the key in MY_KEY, and that it may use this model."),
        (402, b"", "answers HTTP 402: (nothing). The account has no credit left; replies so far are kept."),
        (404, b'{"detail": "Not Found"}',
         "Check writer.base_url and writer.model (\"big\")."),
        (302, b"", "It redirects elsewhere; give the final address as writer.base_url."),
    ],
)  # fmt: skip
def test_endpoint_errors_that_end_the_run(status, body, says):
    with serving(lambda *_: (status, {"Location": "http://127.0.0.1:9/"}, body)) as (url, _):
        generator = endpoint(url, key="sk-secret", key_variable="MY_KEY")
        with pytest.raises(ModelError) as caught:
            generator.generate(requests_of("a", "b", "c"))
    assert says in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_endpoint_that_is_gone():
    """Nobody listens: an outcome each, until so many in a row that the run ends."""
    with serving(lambda *_: (200, {}, b"")) as (url, _):
        pass
    generator = endpoint(url, retries=1)
    (reply,) = generator.generate(requests_of("a"))
    assert re.fullmatch(r"the connection failed: .* \(tried 2 times\)", reply.error)
    with pytest.raises(ModelError, match=r"2\d requests in a row failed; the last: the connection"):
        generator.generate(requests_of(*map(str, range(GIVE_UP_AFTER))))


def test_endpoint_that_takes_none_of_the_requests():
    with serving(lambda *_: (400, {}, b'{"error": "unknown parameter max_tokens"}')) as (url, seen):
        generator = endpoint(url, length_parameter="max_completion_tokens")
        with pytest.raises(ModelError, match=r"2\d requests in a row failed; the last: HTTP 400: unknown parameter"):
            generator.generate(requests_of(*map(str, range(GIVE_UP_AFTER + 5))))
    assert len(seen) <= GIVE_UP_AFTER + 5
    assert all("max_tokens" not in body and body["max_completion_tokens"] == 6 for _, _, body in seen)


def test_endpoint_that_is_slow():
    let_go = threading.Event()

    def answer(*_):
        let_go.wait(5)
        return 200, {}, completion("late")

    with serving(answer) as (url, _):
        (reply,) = endpoint(url, retries=0, timeout_seconds=0.1).generate(requests_of("a"))
        let_go.set()
    assert reply.error == "no answer within 0.1 seconds"


def test_endpoint_sends_no_more_than_it_may_at_a_time():
    at_work, most, lock = [0], [0], threading.Lock()

    def answer(*_):
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        threading.Event().wait(0.02)
        with lock:
            at_work[0] -= 1
        return 200, {}, completion("ok")

    with serving(answer) as (url, _):
        endpoint(url, concurrency=3).generate(requests_of(*map(str, range(12))))
    assert 2 <= most[0] <= 3


def test_endpoint_key_comes_from_the_environment(monkeypatch):
    writer = Writer(engine="endpoint", base_url="http://localhost:1/v1", key_variable="MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ModelError, match=r"writer\.key_variable: MY_KEY is not set\. Put the server's key into it"):
        EndpointGenerator.open(writer)
    monkeypatch.setenv("MY_KEY", "sk\nx")
    with pytest.raises(ModelError, match="what MY_KEY holds is no key"):
        EndpointGenerator.open(writer)
    monkeypatch.setenv("MY_KEY", " sk-1 ")
    assert EndpointGenerator.open(writer).key == "sk-1"


def test_pauses_grow_and_keep_their_bounds():
    pauses = [pause_seconds(attempt, None, "0" * 64, 60) for attempt in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_seconds(3, None, "f" * 64, 60) == 4
    assert pause_seconds(0, "12", "0" * 64, 60) == 12
    assert pause_seconds(0, "9999", "0" * 64, 60) == 60
    assert pause_seconds(0, "-3", "0" * 64, 60) == 0
    assert pause_seconds(0, "Sun, 06 Nov 1994 08:49:37 GMT", "0" * 64, 60) == 0
    assert pause_seconds(1, "soon", "0" * 64, 60) == 2
