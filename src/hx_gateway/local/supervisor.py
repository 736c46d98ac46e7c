"""Starts, watches and stops the child process that serves one model file."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from hx_gateway.local import gguf
from hx_gateway.local.server import API_KEY_VARIABLE

_log = logging.getLogger(__name__)

_STEADY_S = 60.0  # a child that lived this long is given its next restart without delay
_STDERR_LINES = 20
_LONGEST_LINE = 1 << 16


class LocalModelError(Exception):
    """A model file cannot be served; the message names the model, the cause and the remedy."""


class LocalModel:
    """A GGUF file served by llama.cpp in a child process on 127.0.0.1.

    One owner starts and stops it, on one event loop. Between the two the child is started again whenever it dies, on
    the same port, so that ``url`` stays valid.

    Args:
        name: The model's name in the configuration; also the name it answers to.
        path: The GGUF file.
        mode: ``chat`` or ``embedding`` (llama.cpp serves only one of them in a process); empty asks the file.
        port: TCP port; 0 takes a free one at the first start and keeps it.
        slots: Requests worked on at once.
        context: Tokens of context for each slot; 0 takes what the model was trained for.
        threads: Processor threads; 0 leaves it to llama.cpp.
        pooling: ``mean``, ``cls``, ``last`` or ``rank``; empty takes the model's own, else ``mean``.
        api_key: Bearer key the server asks for; empty for none. It is handed over in the environment.
        start_timeout_s: Seconds within which the model must be loaded.
        stop_timeout_s: Seconds between SIGTERM and SIGKILL.
        backoff_s: First and longest wait before a restart, in seconds; it doubles in between.
        command: What to run instead of llama.cpp's server: it gets no arguments and must keep the same protocol.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        *,
        mode: str = "",
        port: int = 0,
        slots: int = 1,
        context: int = 0,
        threads: int = 0,
        pooling: str = "",
        api_key: str = "",
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 5.0,
        backoff_s: tuple[float, float] = (0.1, 15.0),
        command: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.path = Path(path).expanduser()
        self.mode = mode
        self.port = port
        self.slots = slots
        self.context = context
        self.threads = threads
        self.pooling = pooling
        self.api_key = api_key
        self.start_timeout_s = start_timeout_s
        self.stop_timeout_s = stop_timeout_s
        self.backoff_s = backoff_s
        self.command = tuple(command)
        self.url = ""
        self.state = "stopped"  # starting, ready, restarting
        self.restarts = 0
        self.last_error = ""
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._readers: list[asyncio.Task[None]] = []
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def stderr_tail(self) -> str:
        """The last lines the child wrote to standard error."""
        return "\n".join(self._stderr)

    async def start(self) -> str:
        """Start the child and wait until the model is loaded.

        Returns:
            The server's root, ``http://127.0.0.1:PORT``; its OpenAI routes are below ``/v1``.

        Raises:
            LocalModelError: The file or the extra ``local`` is missing, or the server did not come up in time.
        """
        if self._watcher is not None:
            return self.url
        self.state = "starting"
        try:
            command = self.command or self._llama_command()
            await self._launch(command)
        except BaseException:
            await self._end_child()
            self.state = "stopped"
            raise
        self._watcher = asyncio.create_task(self._watch(command), name=f"local-model:{self.name}")
        return self.url

    async def stop(self) -> None:
        """End the child: SIGTERM, and SIGKILL after ``stop_timeout_s``. Harmless when there is none."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        await self._end_child()
        self.state = "stopped"

    def _llama_command(self) -> tuple[str, ...]:
        if importlib.util.find_spec("xllamacpp") is None:
            raise LocalModelError(
                f"model {self.name!r}: `path` needs llama.cpp, which is not installed; remedy: pip install 'hx-gateway[local]'"
            )
        try:
            info = gguf.read(self.path)
        except gguf.GgufError as error:
            raise LocalModelError(f"model {self.name!r}: {error}") from None
        if not self.mode:
            self.mode = "embedding" if info.embeds else "chat"
        command = [sys.executable, "-P", "-m", "hx_gateway.local.server", "--path", str(self.path), "--alias", self.name]
        command += ["--slots", str(self.slots), "--threads", str(self.threads), "--parent", str(os.getpid())]
        if self.mode == "embedding":
            pooling = self.pooling or ("" if info.pooling else "mean")
            command += ["--embedding", "--context", str(self.context or info.context_length), "--pooling", pooling]
        else:
            command += ["--context", str(self.context)]
        return tuple(command)

    async def _launch(self, command: Sequence[str]) -> None:
        """Start one child and wait for its line; raises `LocalModelError` when it does not come."""
        if not self.command:
            command = [*command, "--port", str(self.port)]
        environment = dict(os.environ)
        if self.api_key:
            environment[API_KEY_VARIABLE] = self.api_key
        self._stderr.clear()
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,  # never written to: its end tells the child that we are gone
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the gateway, which then stops the child in its turn
                limit=_LONGEST_LINE,
            )
        except OSError as error:
            raise LocalModelError(f"model {self.name!r}: cannot start {command[0]}: {error.strerror}") from None
        assert process.stdout is not None and process.stderr is not None
        errors = asyncio.create_task(self._collect(process.stderr))
        self._readers = [errors]
        try:
            line = await asyncio.wait_for(process.stdout.readline(), self.start_timeout_s)
        except TimeoutError:
            raise self._failed(f"was not ready within {self.start_timeout_s:g} s; allow it more time, or take a smaller model") from None
        except ValueError:
            raise self._failed("wrote an endless line instead of its address") from None
        if not line:
            status = await self._exit_status(process, errors)
            raise self._failed(f"ended with status {status} before it was ready")
        try:
            self.url = str(json.loads(line)["address"])
        except (ValueError, KeyError, TypeError):
            raise self._failed(f"wrote {line[:80]!r} instead of its address") from None
        self.port = int(self.url.rpartition(":")[2])
        self._readers.append(asyncio.create_task(self._drain(process.stdout)))
        self.state = "ready"
        _log.info("local model %s serves at %s (pid %d)", self.name, self.url, process.pid)

    async def _exit_status(self, process: asyncio.subprocess.Process, errors: asyncio.Task[None]) -> int | None:
        """How a child ended that closed its output; None when it lives on. Its last words are read first."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self.stop_timeout_s)
        await asyncio.wait({errors}, timeout=self.stop_timeout_s)
        return process.returncode

    def _failed(self, what: str) -> LocalModelError:
        said = f"; it said:\n{self.stderr_tail}" if self._stderr else ""
        return LocalModelError(f"model {self.name!r}: the server for {self.path} {what}{said}")

    async def _collect(self, stream: asyncio.StreamReader) -> None:
        """Keep the last lines of standard error."""
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the limit: the reader dropped what it had of it
                continue
            if not line:
                return
            self._stderr.append(line.decode("utf-8", "replace").rstrip())

    @staticmethod
    async def _drain(stream: asyncio.StreamReader) -> None:
        """Read and forget, so that a full pipe never blocks the child."""
        while await stream.read(_LONGEST_LINE):
            pass

    async def _watch(self, command: Sequence[str]) -> None:
        """Start the child again whenever it dies, until cancelled."""
        loop = asyncio.get_running_loop()
        first_s, longest_s = self.backoff_s
        delay_s = first_s
        while True:
            process = self._process
            assert process is not None
            began_s = loop.time()
            status = await process.wait()
            if loop.time() - began_s >= _STEADY_S:
                delay_s = first_s
            self.state = "restarting"
            self.last_error = f"ended with status {status}"
            while True:
                _log.warning("local model %s %s; starting it again in %.1f s", self.name, self.last_error, delay_s)
                await self._end_child()
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, longest_s)
                self.restarts += 1
                try:
                    await self._launch(command)
                    break
                except LocalModelError as error:
                    self.last_error = str(error)

    async def _end_child(self) -> None:
        """End the child if it lives, wait for it, and let its pipes go."""
        process = self._process
        if process is not None:
            if process.returncode is None:
                _signal(process.pid, signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), self.stop_timeout_s)
                except TimeoutError:
                    _log.warning("local model %s did not end within %.1f s and is killed", self.name, self.stop_timeout_s)
                    _signal(process.pid, signal.SIGKILL)
                    await process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._process = None
        readers, self._readers = self._readers, []
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    def __repr__(self) -> str:
        return f"<LocalModel {self.name} {self.state} {self.url or self.path} pid={self.pid} restarts={self.restarts}>"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
