"""What a client is told when a model server fails: status, code, whether to try again; and who else is asked."""

from __future__ import annotations

import time

import pytest
from tests.faults.asking import chat, opened
from tests.faults.conftest import Fleet
from tests.integration.protocol.wire import Answer, one, request, texts

from hx_gateway.testing.faults import Fault

GOOD = 200, ""
RESET = 502, "upstream_reset"
BAD = 502, "bad_upstream_response"
REPORTED = 502, "upstream_error"
CREDENTIALS = 502, "upstream_credentials"
SILENT = 504, "first_token_timeout"

WHOLE = {
    "hang": SILENT,
    "reset_head": RESET,
    "close_head": RESET,
    "garbage_http": BAD,
    "huge_headers": GOOD,
    "interim": GOOD,
    "slow delay_s=0.001": GOOD,
    "split": GOOD,
    "black_hole": SILENT,
    "reset_body": RESET,
    "close_body": RESET,
    "endless": BAD,
    "extra_bytes": GOOD,
    "close_delimited": GOOD,
    "long_length": RESET,
    "short_length": BAD,
    "double_length": BAD,
    "bad_chunk": BAD,
    "close_after": GOOD,
    "status status=500": (500, "upstream_error"),
    "status status=503": (503, "upstream_error"),
    "status status=501": (501, "upstream_error"),
    "status status=302": REPORTED,
    "status status=401": CREDENTIALS,
    "status status=403": CREDENTIALS,
    "not_found": REPORTED,
    "error_200": REPORTED,
    "garbage_json": BAD,
    "empty": BAD,
}
"""Faults of an answer that is not streamed, and what comes of each where nobody else can be asked."""

EARLY = {
    "hang": SILENT,
    "reset_head": RESET,
    "close_head": RESET,
    "garbage_http": BAD,
    "double_length": BAD,
    "reset_body after=0": RESET,
    "close_body after=0": RESET,
    "black_hole after=0": SILENT,
    "bad_chunk after=0": BAD,
    "truncated after=0": BAD,
    "error_event after=0": REPORTED,
    "garbage_events after=0": BAD,
    "status status=500": (500, "upstream_error"),
    "status status=401": CREDENTIALS,
    "not_found": REPORTED,
    "error_200": REPORTED,
    "garbage_json": BAD,
    "empty": BAD,
}
"""Faults of a stream before its first event: a proper status, as if no stream had been asked for."""

LATE = {
    "reset_body": "stream_broken",
    "close_body": "stream_broken",
    "black_hole": "stream_stalled",
    "bad_chunk": "stream_broken",
    "truncated": "stream_broken",
    "error_event": "stream_broken",
    "long_length": "",
}
"""Faults after the first event: the text so far, an event with the error, and no [DONE]."""

HARMLESS = (
    "interim", "split", "slow delay_s=0.0005", "close_delimited", "close_after", "extra_bytes", "no_usage", "usage_in_last", "usage_with_choice", "crlf", "bom",
    "comments", "no_final_blank", "repeated_finish", "huge_headers",
)  # fmt: skip


def struck(fault: str) -> str:
    """The fault for one request; for two where a kept connection that is lost without a word is worth a second one."""
    return f"{fault} times={2 if fault in ('reset_head', 'close_head') else 1}"


def seen(answer: Answer) -> tuple[int, str]:
    return answer.status, "" if answer.status == 200 else answer.code


@pytest.mark.parametrize("fault", WHOLE)
def test_whole_answers(fault: str, fleet: Fleet) -> None:
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "whole")
    assert seen(answer) == WHOLE[fault], answer.body
    if answer.status == 200:
        assert answer.content == "whole"
    else:
        assert answer.header("x-should-retry") is None  # it was tried once; trying again is the client's to decide
        assert b"Traceback" not in answer.body
    assert len([received for received in fleet.one.requests if received.method == "POST"]) == (
        2 if fault in ("reset_head", "close_head") else 1
    )


@pytest.mark.parametrize("fault", [fault for fault, result in WHOLE.items() if result != GOOD])
def test_whole_answers_from_elsewhere(fault: str, fleet: Fleet) -> None:
    """All of these may be asked of another server, and are."""
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "elsewhere", model="pair")
    assert (answer.status, answer.content) == (200, "elsewhere")
    assert answer.header("x-hx-attempts") == "2"
    assert answer.header("x-hx-endpoint") == "two"
    assert len(fleet.two.requests) == 1


@pytest.mark.parametrize("fault", EARLY)
def test_streams_that_fail_before_their_first_event(fault: str, fleet: Fleet) -> None:
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "early", stream=True)
    assert seen(answer) == EARLY[fault], answer.body
    assert answer.header("content-type") == "application/json"


@pytest.mark.parametrize("fault", EARLY)
def test_streams_from_elsewhere(fault: str, fleet: Fleet) -> None:
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "from elsewhere", model="pair", stream=True)
    assert answer.status == 200
    assert texts(answer.events) == "from elsewhere" and answer.events[-1] == "[DONE]"
    assert answer.header("x-hx-attempts") == "2"


@pytest.mark.parametrize("model", ["solo", "pair"])
@pytest.mark.parametrize("fault", LATE)
def test_streams_that_fail_after_their_first_event(fault: str, model: str, fleet: Fleet) -> None:
    """Nobody else is asked any more: text that was passed on is not said again."""
    fleet.one.token_s = 0.02
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "Count to 9", model=model, stream=True)
    assert answer.status == 200 and answer.whole
    if not LATE[fault]:
        assert texts(answer.events) == "1 2 3 4 5 6 7 8 9"
        return
    *good, last = answer.events
    assert last["error"]["code"] == LATE[fault]
    assert last["error"]["message"] and "[DONE]" not in answer.events
    assert texts(good) == "1"
    assert not fleet.two.requests
    assert answer.header("x-hx-attempts") is None


@pytest.mark.parametrize("fault", HARMLESS)
def test_oddities_that_harm_nobody(fault: str, fleet: Fleet) -> None:
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "Count to 9", stream=True)
    assert answer.whole
    *chunks, done = answer.events
    assert done == "[DONE]" and texts(chunks) == "1 2 3 4 5 6 7 8 9"
    assert all(chunk["model"] == "solo" for chunk in chunks), "the model's name is the one that was asked for"
    assert not any(chunk.get("usage") for chunk in chunks), "usage was not asked for"
    assert all(chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("fault", [fault for fault in HARMLESS if fault != "no_usage"])
def test_usage_where_it_was_asked_for(fault: str, fleet: Fleet) -> None:
    fleet.fail("one", struck(fault))
    answer = chat(fleet.port, "Count to 9", stream=True, stream_options={"include_usage": True})
    counted = [chunk["usage"] for chunk in answer.events[:-1] if chunk.get("usage")]
    assert counted and counted[-1]["completion_tokens"] == 9
    assert answer.events[-1] == "[DONE]"


def test_the_end_of_a_stream_is_passed_on_though_the_server_goes_on(fleet: Fleet) -> None:
    fleet.fail("one", "endless times=1")
    with opened(fleet.port, "Count to 3") as client:
        assert client.head()[0] == 200
        body = b""
        while b"[DONE]" not in body:
            piece = client.chunk()
            assert piece, "the answer ended without [DONE]"
            body += piece
    assert body.count(b"[DONE]") == 1


def test_a_connection_that_breaks_after_the_end_takes_nothing_back(fleet: Fleet) -> None:
    """The answer was complete: that the framing's last five bytes are missing is nobody's concern."""
    count = len(list(chat(fleet.port, "Count to 3", stream=True, stream_options={"include_usage": True}).events))
    fleet.fail("one", f"close_body after={count} times=1")
    answer = chat(fleet.port, "Count to 3", stream=True)
    assert answer.events[-1] == "[DONE]" and texts(answer.events) == "1 2 3"


def test_a_server_that_does_not_stream_though_asked(fleet: Fleet) -> None:
    """Told so by a whole answer; the client gets its stream all the same."""
    fleet.fail("one", None)
    answer = chat(fleet.port, "Count to 3", stream=True)
    assert texts(answer.events) == "1 2 3"


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_client_are_its_own(stream: bool, fleet: Fleet) -> None:
    """Passed through as they are, asked of nobody else, and no reason to rest the server."""
    for fault, code in (
        ("status status=400 message=no", 400),
        ("status status=422 message=no", 422),
        ("status status=413 message=no", 413),
    ):
        for _ in range(3):
            fleet.fail("one", struck(fault))
            answer = chat(fleet.port, "refused", model="pair", stream=stream)
            assert answer.status == code
            assert b'"message": "no"' in answer.body
    fleet.fail("one", "too_long times=1")
    answer = chat(fleet.port, "too long", model="pair", stream=stream)
    assert answer.status == 400
    assert not [received for received in fleet.two.requests if received.method == "POST"]
    status = fleet.status()["first"]
    assert (status["breaker"]["failures"], status["endpoint_breaker"]["failures"]) == (0, 0)


def test_a_server_without_a_database_is_not_the_clients_fault(fleet: Fleet) -> None:
    fleet.fail("one", Fault("status", status=400, message="No connected db.", times=1))
    answer = chat(fleet.port)
    assert seen(answer) == CREDENTIALS


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server(stream: bool, fleet: Fleet) -> None:
    """429 with a true Retry-After where nobody else is left; elsewhere where somebody is; and no mark against it."""
    fleet.fail("one", "busy retry_after_s=1 times=1")
    answer = chat(fleet.port, stream=stream)
    assert seen(answer) == (429, "upstream_busy")
    assert answer.header("retry-after") == "1"
    assert answer.header("x-should-retry") is None
    assert fleet.status()["solo"]["breaker"]["failures"] == 0
    fleet.fail("one", "busy retry_after_s=1 times=1")
    assert chat(fleet.port, "elsewhere", model="pair", stream=stream).status == 200
    time.sleep(1.1)  # what it asked for


def test_when_every_try_failed_the_client_need_not_repeat_them(fleet: Fleet) -> None:
    fleet.fail("one", "status status=500 times=1")
    fleet.fail("two", "status status=503 times=1")
    answer = chat(fleet.port, model="pair")
    assert seen(answer) == (503, "upstream_error")
    assert answer.header("x-should-retry") == "false"
    assert answer.header("x-hx-attempts") == "2"


def test_a_server_that_is_gone(fleet: Fleet) -> None:
    fleet.fail("one", "refuse")
    assert seen(chat(fleet.port)) == (502, "upstream_connect_failed")
    answer = chat(fleet.port, "elsewhere", model="pair")
    assert answer.content == "elsewhere"
    fleet.fail("one", None)
    fleet.until(lambda it: chat(it.port).status == 200)


def test_the_clients_own_deadline(fleet: Fleet) -> None:
    """It is nobody's failure: a client in a hurry must not be able to have servers rested."""
    fleet.one.first_token_s = fleet.two.first_token_s = 0.6
    for _ in range(4):
        assert seen(chat(fleet.port, "ping", "pair", False, "x-hx-timeout-ms: 50")) == (504, "upstream_timeout")
    fleet.fail("one", "refuse")  # so that the deadline passes while a connection is made
    fleet.fail("one", None)
    for _ in range(4):
        assert chat(fleet.port, "ping", "solo", False, "x-hx-timeout-ms: 1").status in (502, 504)
    status = fleet.status()
    assert {status[name]["breaker"]["failures"] for name in status} == {0}


@pytest.mark.parametrize(
    ("fault", "result"), [("reset_head", RESET), ("close_head", RESET), ("garbage_http", BAD), ("double_length", BAD), ("hang", SILENT)]
)
def test_forwarded_requests(fault: str, result: tuple[int, str], fleet: Fleet) -> None:
    fleet.fail("one", struck(fault))
    assert seen(chat(fleet.port, path="/v1/forwarded")) == result


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500, 503])
def test_a_forwarded_answer_keeps_its_status(status: int, fleet: Fleet) -> None:
    """But for a refusal of the gateway's own key, which a client would take for one of its own."""
    fleet.fail("one", f"status status={status} message=kept")
    answer = one(fleet.port, request(b"", method="GET", path="/v1/forwarded", length=False))
    if status == 401:
        assert seen(answer) == CREDENTIALS
    else:
        assert answer.status == status and b"kept" in answer.body


def test_a_forwarded_answer_that_breaks_off_is_seen_to(fleet: Fleet) -> None:
    fleet.fail("one", "close_body times=1")
    answer = chat(fleet.port, path="/v1/forwarded")
    assert not answer.whole
