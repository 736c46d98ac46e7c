"""A model server of our own answers bursts though the gateway's pool keeps connections to it open."""

from __future__ import annotations

import http.client
import select
from contextlib import ExitStack, closing

from tests.support import required
from tests.support.background import llamacpp

from hx_gateway.local import tiny


def test_idle_connections_hold_nobody_up() -> None:
    required.llamacpp()
    with llamacpp(tiny.path(), "--embedding", "--pooling", "mean") as url, ExitStack() as opened:
        host = url.removeprefix("http://")
        connections: list[http.client.HTTPConnection] = []
        for burst in (4, 8, 16, 32):  # each uses the connections of the one before, and as many new ones
            while len(connections) < burst:
                connections.append(opened.enter_context(closing(http.client.HTTPConnection(host, timeout=60))))
            for connection in connections:
                connection.request("POST", "/v1/embeddings", '{"input": "x"}', {"Content-Type": "application/json"})
            for connection in connections:
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
            # Had any waited for a thread, llama.cpp would have closed an idle connection for it: its end could be read now.
            closed, _, _ = select.select([connection.sock for connection in connections], [], [], 0)
            assert closed == []
