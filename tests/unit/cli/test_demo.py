"""The demo's parts: its configuration is valid, and its check notices every way in which an answer can be wrong."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hx_gateway.cli import demo
from hx_gateway.config.load import load_text
from hx_gateway.local import tiny

Reply = Callable[[bytes], tuple[int, bytes]]


@pytest.fixture
def gateway() -> Iterator[Callable[[Reply], int]]:
    """Starts something that answers every request as told; gives its port."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(reply: Reply) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, body = reply(self.rfile.read(int(self.headers.get("content-length", 0))))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return int(server.server_address[1])

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


def whole(content: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def streamed(*pieces: str, done: bool = True) -> bytes:
    events = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
    events.append(json.dumps({"choices": [], "usage": {"total_tokens": 9}}))
    return "".join(f"data: {event}\n\n" for event in events + ["[DONE]"] * done).encode()


@pytest.mark.parametrize("ollama_port", [None, 11434])
def test_the_configuration_loads_without_a_warning(ollama_port: int | None) -> None:
    key = f"hx-{secrets.token_urlsafe(24)}"
    loaded = load_text(demo.configuration(8000, "/tmp/state", ollama_port), "demo", {demo.KEY_VARIABLE: key})
    assert (loaded.warnings, loaded.blockers, loaded.unused) == ((), (), ())
    assert loaded.config.service.host == "127.0.0.1"
    assert {group: settings.tier for group, settings in loaded.config.groups.items()} == {
        "hx-chat-fast": "fast",
        "hx-chat": "balanced",
        "hx-chat-premium": "premium",
    }
    assert loaded.config.models["emb-premium"].dimensions == tiny.EMBEDDING_LENGTH
    assert ("ollama" in loaded.config.endpoints) == (ollama_port is not None)


def test_the_instructions_name_the_address_and_the_key() -> None:
    text = demo.instructions(8123, "hx-just-made")
    assert "export KEY=hx-just-made" in text
    assert text.count("http://127.0.0.1:8123/v1/") == 4
    for body in [line.partition("-d '")[2].rpartition("'")[0] for line in text.splitlines() if "-d '" in line]:
        assert "messages" in json.loads(body) or "input" in json.loads(body)


def test_an_ollama_is_known_by_its_version(gateway) -> None:
    assert demo.has_ollama(gateway(lambda _: (200, b'{"version": "0.14.0"}')))
    assert not demo.has_ollama(gateway(lambda _: (200, b"<html>something else</html>")))
    assert not demo.has_ollama(gateway(lambda _: (200, b"[]")))
    assert not demo.has_ollama(demo.free_port())


def test_right_answers_pass(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    port = gateway(lambda body: (200, streamed("HX", "-OK") if json.loads(body)["stream"] else whole("HX-OK")))
    demo.check(port, "key")
    assert capsys.readouterr().out == "streamed: HX-OK\nplain: HX-OK\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, streamed("HX", "-OK", done=False)), r"without \[DONE\]"),
        ((200, streamed("HX-", "KO")), "expected 'HX-OK'"),
        ((200, b'data: {"error": {"message": "gone"}}\n\n'), "stream broke"),
        ((401, b'{"error": {"message": "no key"}}'), "answered 401.*no key"),
        ((503, b""), "answered 503"),
    ],
)
def test_a_wrong_stream_fails(gateway, answer: tuple[int, bytes], why: str) -> None:
    with pytest.raises(demo.DemoError, match=why):
        demo.check(gateway(lambda _: answer), "key")


@pytest.mark.parametrize("body", [b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}', whole("pong")])
def test_a_wrong_plain_answer_fails(gateway, body: bytes) -> None:
    port = gateway(lambda asked: (200, streamed("HX-OK") if json.loads(asked)["stream"] else body))
    with pytest.raises(demo.DemoError, match="no content|expected 'HX-OK'"):
        demo.check(port, "key")


def test_ready_is_waited_for(gateway) -> None:
    answers = iter([(503, b""), (503, b""), (200, b"")])
    assert demo.wait_until_ready(gateway(lambda _: next(answers)), threading.Event())


def test_waiting_ends_when_the_server_has_ended() -> None:
    over = threading.Event()
    over.set()
    assert not demo.wait_until_ready(demo.free_port(), over)
