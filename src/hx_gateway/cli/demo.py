"""The main job on embedded defaults: real llama.cpp servers with the tiny model behind the gateway, on one machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from hx_gateway.local import tiny

OLLAMA_PORT = 11434
KEY_VARIABLE = "HX_DEMO_KEY"
_READY_WITHIN_S = 120.0
_POLL_S = 0.05
_ANSWER_WITHIN_S = 60.0
_EXPECTED = "HX-OK"


class DemoError(Exception):
    """The demo did not do what it promises; the message says what went wrong."""


def configuration(port: int, state: str, ollama_port: int | None = None) -> str:
    """The demo's configuration as YAML text; its key comes from the environment variable ``HX_DEMO_KEY``.

    Args:
        port: TCP port of the gateway.
        state: Its state directory.
        ollama_port: Port of this machine's own Ollama, whose models are added; None when there is none.
    """
    path = json.dumps(str(tiny.path()))  # a JSON string is a YAML string, whatever is in it
    text = f"""\
service: {{host: "127.0.0.1", port: {port}}}
keys: {{master_key: "env:{KEY_VARIABLE}"}}
storage: {{state_directory: {json.dumps(state)}}}
gateway: {{default_model: hx-chat}}
models:
  tiny-fast: {{path: {path}, mode: chat, slots: 4, threads: 1}}
  tiny-balanced: {{path: {path}, mode: chat, slots: 4, threads: 1}}
  tiny-premium: {{path: {path}, mode: chat, slots: 4, threads: 1}}
  emb-premium: {{path: {path}, mode: embedding, dimensions: {tiny.EMBEDDING_LENGTH}, threads: 1}}
groups:
  hx-chat-fast: {{models: [tiny-fast], tier: fast}}
  hx-chat: {{models: [tiny-balanced, tiny-fast], tier: balanced}}
  hx-chat-premium: {{models: [tiny-premium], tier: premium}}
"""
    if ollama_port is not None:
        text += f'endpoints:\n  ollama: {{url: "http://127.0.0.1:{ollama_port}", provider: ollama, discover: true}}\n'
    return text


def instructions(port: int, key: str) -> str:
    """The lines to try, for a terminal."""
    base = f"http://127.0.0.1:{port}"
    return f"""
HX Gateway listens on {base}. Try, in another terminal:

  export KEY={key}

  # a chat, whole
  curl -s {base}/v1/chat/completions -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \\
       -d '{{"model": "hx-chat", "messages": [{{"role": "user", "content": "Return exactly the text: HX-OK"}}], "temperature": 0}}'

  # a chat, streamed, by group and without a model
  curl -sN {base}/v1/chat/completions -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \\
       -H 'X-HX-Model-Group: hx-chat-fast' \\
       -d '{{"messages": [{{"role": "user", "content": "Count to 20"}}], "temperature": 0, "stream": true}}'

  # embeddings
  curl -s {base}/v1/embeddings -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \\
       -d '{{"model": "emb-premium", "input": "HX-OK"}}'

  # what there is, and how it is
  curl -s {base}/v1/models -H "Authorization: Bearer $KEY"
  curl -s {base}/models/status -H "Authorization: Bearer $KEY"

The tiny model copies text and counts to 20; anything else it answers with nonsense. Ctrl-C ends the demo.
"""


def has_ollama(port: int = OLLAMA_PORT) -> bool:
    """Whether an Ollama answers on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.5)
    try:
        connection.request("GET", "/api/version")
        answer = json.loads(connection.getresponse().read(65536))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and "version" in answer


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_ready(port: int, stop: threading.Event) -> bool:
    """Wait until the gateway says it is ready; False when it did not within two minutes, or ``stop`` was set."""
    give_up_s = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < give_up_s and not stop.wait(_POLL_S):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                connection.close()
                return True
        connection.close()
    return False


def _ask(port: int, key: str, stream: bool) -> http.client.HTTPResponse:
    body = {
        "model": "hx-chat",
        "messages": [{"role": "user", "content": f"Return exactly the text: {_EXPECTED}"}],
        "max_tokens": 10,
        "temperature": 0,
        "stream": stream,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_WITHIN_S)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Connection": "close"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise DemoError(f"the gateway answered {answer.status}: {answer.read(2000).decode('utf-8', 'replace')}")
    return answer


def ask_plain(port: int, key: str) -> str:
    """The content of one whole chat answer.

    Raises:
        DemoError: The gateway refused, or the answer has no content.
    """
    with _ask(port, key, stream=False) as answer:
        document: Any = json.loads(answer.read())
    try:
        return str(document["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise DemoError(f"the answer has no content: {document!r}") from None


def ask_streamed(port: int, key: str) -> str:
    """The content of one streamed chat answer, put together.

    Raises:
        DemoError: The gateway refused, or the stream did not end as it should.
    """
    pieces: list[str] = []
    complete = False
    with _ask(port, key, stream=True) as answer:
        for line in answer:
            data = line.strip().removeprefix(b"data: ")
            if data == b"[DONE]":
                complete = True
            elif data.startswith(b"{"):
                event = json.loads(data)
                if "error" in event:
                    raise DemoError(f"the stream broke: {event['error']}")
                pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
    if not complete:
        raise DemoError(f"the stream ended without [DONE] after {''.join(pieces)!r}")
    return "".join(pieces)


def check(port: int, key: str) -> None:
    """Ask one streamed and one plain chat, and print the answers.

    Raises:
        DemoError: An answer is not what the tiny model was trained to say.
    """
    for kind, ask in (("streamed", ask_streamed), ("plain", ask_plain)):
        content = ask(port, key)
        print(f"{kind}: {content}", flush=True)
        if content != _EXPECTED:
            raise DemoError(f"{kind}: expected {_EXPECTED!r}, not {content!r}")


class _Companion(threading.Thread):
    """Runs beside the server, which has the main thread: waits until it is ready, then shows or checks it."""

    def __init__(self, port: int, key: str, once: bool) -> None:
        super().__init__(name="demo", daemon=True)
        self.port = port
        self.key = key
        self.once = once
        self.over = threading.Event()
        self.failure = "ended before it was asked anything" if once else ""

    def run(self) -> None:
        ready = wait_until_ready(self.port, self.over)
        if self.over.is_set():
            return
        if not self.once:
            print(instructions(self.port, self.key) if ready else "still not ready after two minutes; see the log above", flush=True)
            return
        try:
            if not ready:
                raise DemoError(f"not ready within {_READY_WITHIN_S:g} s")
            check(self.port, self.key)
            self.failure = ""
        except (DemoError, OSError, ValueError, http.client.HTTPException) as error:
            self.failure = str(error) or repr(error)
        os.kill(os.getpid(), signal.SIGTERM)


def run(port: int, once: bool) -> int:
    """Run the demo; returns the exit status."""
    from hx_gateway.config.load import load_text
    from hx_gateway.server.run import serve

    if once:
        port = port or free_port()
    # The server ends in order on SIGTERM and then raises the signal again, which must not end the demo before it has tidied up.
    signal.signal(signal.SIGTERM, lambda *_: None)
    ollama_port = OLLAMA_PORT if not once and has_ollama() else None
    key = f"hx-{secrets.token_urlsafe(24)}"
    companion = _Companion(port, key, once)
    with TemporaryDirectory(prefix="hx-demo-", ignore_cleanup_errors=True) as state:  # it shares nothing with a gateway of this user's
        loaded = load_text(configuration(port, state, ollama_port), "demo", {KEY_VARIABLE: key})
        companion.start()
        status = serve(loaded)
    companion.over.set()
    companion.join(_ANSWER_WITHIN_S)
    if companion.failure:
        print(f"demo failed: {companion.failure}", file=sys.stderr)
        return 1
    return status


def demo(
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on; with --once, 0 takes a free one.")] = 8000,
    once: Annotated[bool, typer.Option("--once", help="Ask one streamed and one plain chat, print the answers, and end.")] = False,
) -> None:
    """Run the gateway with small real models on this machine, and print what to try."""
    if port == 0 and not once:
        raise typer.BadParameter("0 takes a free port with --once only; name one to connect to", param_hint="--port")
    raise typer.Exit(run(port, once))
