"""The supervisor against real child processes that behave badly in ways llama.cpp seldom does on demand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from hx_gateway.local.supervisor import LocalModel, LocalModelError

READY = 'print(json.dumps({"address": "http://127.0.0.1:4321", "pid": os.getpid()}), flush=True)\n'
UNTIL_END_OF_INPUT = "sys.stdin.buffer.read()\n"


def child(code: str, **options) -> LocalModel:
    """A model whose server is the Python code given."""
    options = {"backoff_s": (0.01, 0.05), "stop_timeout_s": 5.0, "start_timeout_s": 30.0} | options
    command = (sys.executable, "-c", "import json, os, signal, sys, time\n" + code)
    return LocalModel("tiny", "unused.gguf", command=command, **options)


async def until(true, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_starts_once_and_stops() -> None:
    model = child(READY + UNTIL_END_OF_INPUT)
    assert await model.start() == "http://127.0.0.1:4321"
    pid = model.pid
    assert pid is not None
    assert await model.start() == model.url
    assert (model.pid, model.state, model.port) == (pid, "ready", 4321)
    await model.stop()
    assert not alive(pid)
    assert (model.pid, model.state) == (None, "stopped")
    await model.stop()  # twice is harmless


async def test_can_be_started_again_after_a_stop() -> None:
    model = child(READY + UNTIL_END_OF_INPUT)
    await model.start()
    await model.stop()
    await model.start()
    assert model.state == "ready"
    await model.stop()


async def test_a_child_that_ends_early_is_reported_with_its_last_words() -> None:
    model = child("sys.stderr.write('no memory for 70 billion numbers\\n'); sys.exit(7)")
    with pytest.raises(LocalModelError, match=r"(?s)model 'tiny'.*status 7.*no memory for 70 billion"):
        await model.start()
    assert (model.pid, model.state) == (None, "stopped")


async def test_a_child_that_never_gets_ready_is_ended() -> None:
    model = child(
        f"open(sys.argv[0] and os.devnull); sys.stderr.write(str(os.getpid()) + '\\n'); sys.stderr.flush()\n{UNTIL_END_OF_INPUT}",
        start_timeout_s=5.0,
    )
    with pytest.raises(LocalModelError, match=r"not ready within 5 s"):
        await model.start()
    assert not alive(int(model.stderr_tail))


@pytest.mark.parametrize("line", ["'hello'", "'{}'", "'[1]'", "'{'", "'x' * 200_000"])
async def test_a_line_that_is_no_address_is_refused(line: str) -> None:
    model = child(f"print({line}, flush=True)\n{UNTIL_END_OF_INPUT}")
    with pytest.raises(LocalModelError, match=r"instead of its address"):
        await model.start()
    assert model.pid is None


async def test_a_child_deaf_to_sigterm_is_killed() -> None:
    model = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "while True: time.sleep(1)\n", stop_timeout_s=0.2)
    await model.start()
    pid = model.pid
    assert pid is not None
    await model.stop()
    assert not alive(pid)


async def test_a_child_that_dies_comes_back_and_the_count_says_so() -> None:
    model = child(READY + UNTIL_END_OF_INPUT)
    await model.start()
    first = model.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: model.restarts == 1 and model.state == "ready")
    assert model.pid not in (None, first)
    assert "-9" in model.last_error
    await model.stop()


async def test_restarts_go_on_until_the_child_can_live_again(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    model = child(f"if os.path.exists({str(fault)!r}): sys.stderr.write('still broken'); sys.exit(5)\n" + READY + UNTIL_END_OF_INPUT)
    await model.start()
    fault.touch()
    assert model.pid is not None
    os.kill(model.pid, signal.SIGKILL)
    await until(lambda: model.restarts >= 3)
    assert model.state == "restarting"
    assert "still broken" in model.last_error
    fault.unlink()
    await until(lambda: model.state == "ready")
    await model.stop()


async def test_stop_while_waiting_for_a_restart_leaves_nothing_behind() -> None:
    model = child(READY + UNTIL_END_OF_INPUT, backoff_s=(60.0, 60.0))
    await model.start()
    assert model.pid is not None
    os.kill(model.pid, signal.SIGKILL)
    await until(lambda: model.state == "restarting")
    await model.stop()
    assert (model.pid, model.state) == (None, "stopped")


async def test_a_start_that_is_cancelled_leaves_no_child(tmp_path: Path) -> None:
    seen = tmp_path / "pid"
    model = child(f"open({str(seen)!r}, 'w').write(str(os.getpid()))\n" + UNTIL_END_OF_INPUT)
    starting = asyncio.create_task(model.start())
    await until(lambda: seen.exists() and seen.read_text())
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(int(seen.read_text()))


async def test_much_output_does_not_block_the_child() -> None:
    flood = "for n in range(3000): print('o' * 100); print('e' * 100, n, file=sys.stderr)\nsys.stdout.flush()\nsys.stderr.flush()\n"
    model = child(
        READY + flood + "print('x' * 200000, file=sys.stderr)\nprint('last words', file=sys.stderr, flush=True)\n" + UNTIL_END_OF_INPUT
    )
    await model.start()
    await until(lambda: model.stderr_tail.endswith("last words"))
    assert len(model.stderr_tail) < 10_000
    await model.stop()


async def test_the_key_goes_by_environment_and_not_by_argument() -> None:
    model = child(
        "print(json.dumps({'address': 'http://' + os.environ['HX_LOCAL_API_KEY'] + ':1'}), flush=True)\n" + UNTIL_END_OF_INPUT,
        api_key="opensesame",
    )
    assert await model.start() == "http://opensesame:1"
    await model.stop()


async def test_a_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalModelError, match=r"model 'tiny'.*pip install 'hx-gateway\[local\]'"):
        await LocalModel("tiny", tiny_model).start()


async def test_a_missing_file_is_named_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match=r"model 'tiny'.*none.gguf.*no such file; `path`"):
        await LocalModel("tiny", tmp_path / "none.gguf").start()


async def test_a_program_that_does_not_exist_is_an_error_of_the_model() -> None:
    with pytest.raises(LocalModelError, match="cannot start"):
        await LocalModel("tiny", "x.gguf", command=("/nonexistent/python",)).start()


def test_the_repr_tells_name_state_and_place() -> None:
    model = child(READY)
    assert "tiny" in repr(model)
    assert "stopped" in repr(model)
    assert json.dumps(model.stderr_tail) == '""'
