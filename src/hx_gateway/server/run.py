"""Serving: one process, or several that share the port, each with the same answer to signals and to a worker's death."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from hx_gateway.access.sharing import shared_memory
from hx_gateway.config.load import Loaded
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core.plugins import UnknownPlugin
from hx_gateway.server.handover import Handover, arrived
from hx_gateway.server.housekeeper import Housekeeper
from hx_gateway.server.notify import Watchdog, inherited, ready, watchdog_s
from hx_gateway.telemetry.book import Book, shared_pages
from hx_gateway.telemetry.logs import configure_logs

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 78
_POLL_S = 0.1
_STEADY_S = 10.0  # a worker that lived this long is replaced without delay
_GRACE_S = 5.0  # beyond the drain timeout, before a worker is killed
_log = logging.getLogger(__name__)

Places = Mapping[str, list[tuple[str, str]]]


class CannotServe(Exception):
    """The gateway cannot be started; the message says why and what to do."""


def listen(host: str, port: int, shared: bool) -> socket.socket:
    """A bound socket.

    Args:
        host: Address or name to listen on.
        port: TCP port; 0 takes a free one.
        shared: Whether several sockets share the port (SO_REUSEPORT).

    Raises:
        CannotServe: The address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotServe(
                f"port {port} on {host} is taken by another program; stop it, or choose another with service.port or --port"
            ) from None
        if error.errno == errno.EACCES:
            raise CannotServe(f"port {port} may not be opened by this user; ports below 1024 need rights, choose a higher one") from None
        raise CannotServe(f"cannot listen on {host} port {port} (service.host, service.port): {error.strerror or error}") from None


def serve(loaded: Loaded, again: Callable[[], Loaded] | None = None) -> int:
    """Run the gateway until it is told to stop (SIGTERM, SIGINT); returns the exit status.

    Args:
        loaded: The configuration.
        again: Loads it anew, for reloads; None where it cannot change.
    """
    config = loaded.config
    configure_logs(config.monitoring.log_level, config.monitoring.log_format)
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    if loaded.blockers:
        for problem in loaded.blockers:
            _say(str(problem))
        return EXIT_CONFIG
    passed = inherited(config.service.port)
    keeper = Housekeeper(config, passed)  # first of all: what is forked later is larger, and holds the port
    try:
        if config.service.workers > 1:
            return _Workers(loaded, again, keeper.leave, passed).run()
        return _work(loaded, again, passed or [listen(config.service.host, config.service.port, False)], 1, None)
    except CannotServe as error:
        _say(f"hx-gateway: {error}")
        return EXIT_FAILED
    finally:
        keeper.close()


def _work(
    loaded: Loaded,
    again: Callable[[], Loaded] | None,
    listeners: list[socket.socket],
    workers: int,
    local: Places | None,
    told: Callable[[], bool] = lambda: False,
    memory: int = -1,
    book: Book | None = None,
    beat: Callable[[float], object] | None = None,
) -> int:
    """Serve on ``listeners`` in this process; ``told`` says whether a signal to end came before this could hear it.

    Without a ``beat`` of its own this is the main process: it speaks to the service manager and may get a successor.
    """
    config = loaded.config
    from hx_gateway.gateway import build
    from hx_gateway.local.supervisor import LocalModelError
    from hx_gateway.server.app import GatewayServer

    early: list[int] = []  # what comes while we are being built must not be lost
    _on_end(lambda number, _: early.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until reloads are served; the file's stamp tells what was missed
    try:
        gateway = build(config, workers, local=local, memory=memory, book=book, kept=True)
        host, port = listeners[0].getsockname()[:2]

        def started() -> None:
            scheme = "https" if config.service.tls else "http"
            shown = f"[{host}]" if ":" in host else host
            _log.info(
                "listening on %s://%s:%d, serving %s", scheme, shown, port, ", ".join(sorted(gateway.registry.targets)) or "no model yet"
            )
            if not gateway.registry.targets:
                _log.warning(
                    "no model server was found on this machine's usual ports; start one (Ollama, vLLM, llama.cpp, LM Studio), "
                    "or name yours in a configuration file (see: hx-gateway check --help)"
                )
            if beat is None:
                ready(listeners, f"listening on {scheme}://{shown}:{port}")
                arrived()

        handover = Handover(listeners) if beat is None else None
        alive = Watchdog()

        def look(now_s: float) -> None:
            alive(now_s)
            if handover is not None and not server.should_exit and handover.done():
                _log.info("the successor serves; what is under way here is finished")
                server.lasting = server.should_exit = True

        server = GatewayServer(gateway, started, again, loaded, beat or look)
        server.lasting = "NOTIFY_SOCKET" in os.environ  # the service manager keeps the sockets
        if handover is None:
            signal.signal(signal.SIGUSR2, lambda number, frame: setattr(server, "lasting", True))
        # uvicorn drains on these signals and then raises them again for whoever was there before: by then it hears them in vain.
        _on_end(server.handle_exit)
        server.should_exit = bool(early) or told()
        with asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(server.serve(sockets=listeners))
    except UnknownPlugin as error:
        _say(f"hx-gateway: {error}")
        return EXIT_CONFIG
    except LocalModelError as error:
        _say(f"hx-gateway: {error}")
        return EXIT_FAILED
    return EXIT_OK


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _on_end(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have the signals that end a process handled by ``handler``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


class _Workers:
    """The parent of several workers: forks them, replaces what dies, passes signals on.

    Each worker has its own socket on the shared port. The parent keeps all of them open, so that connections made
    while a worker is being replaced wait for its successor instead of being refused.
    """

    def __init__(
        self, loaded: Loaded, again: Callable[[], Loaded] | None, forked: Callable[[], None], passed: Sequence[socket.socket] = ()
    ) -> None:
        self.loaded = loaded
        self.forked = forked  # called first in every process made from this one
        self.again = again
        self.config = config = loaded.config
        self.count = config.service.workers
        self.memory = shared_memory()  # for limits, where nothing can be kept on disk
        self.pages = shared_pages(self.count)  # for what workers count
        self.listeners = list(passed) or [listen(config.service.host, config.service.port, True)]
        port = self.listeners[0].getsockname()[1]
        # One that came to us alone cannot be joined by others: then the workers share it.
        while len(self.listeners) < self.count and self.listeners[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            self.listeners.append(listen(config.service.host, port, True))
        self.handover = Handover(self.listeners)
        self.beats = mmap.mmap(-1, 8 * self.count)  # when each worker's event loop turned last, in monotonic seconds; 0 before it serves
        self.ready = False
        self.pids: dict[int, int] = {}  # process id to worker number
        self.born_s: dict[int, float] = {}
        self.due_s: dict[int, float] = dict.fromkeys(range(self.count), 0.0)  # workers to start, and when
        self.pause_s = [0.0] * self.count
        self.local_pid = 0
        self.local: Places | None = None
        self.stopping = False
        self.status = EXIT_OK

    def run(self) -> int:
        """Work until told to stop and all workers have ended; returns the exit status."""
        if any(model.path for model in self.config.models.values()):
            self.local_pid, self.local = _serve_local(self.config, self.forked)
        _on_end(self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        gc.freeze()  # pages that nobody writes to stay shared with the workers
        kill_at_s = 0.0
        alive = Watchdog()
        while True:
            now_s = time.monotonic()
            alive(now_s)
            if self.stopping:
                if not kill_at_s:
                    kill_at_s = now_s + self.config.http.drain_timeout_seconds + _GRACE_S
                    for listener in self.listeners:
                        listener.close()  # first of all: from here on new connections are refused
                    self._signal(signal.SIGTERM)
                elif now_s >= kill_at_s:
                    _log.warning("workers did not end in time and are killed")
                    self._signal(signal.SIGKILL)
                if not self.pids:
                    break
            else:
                for number, due_s in list(self.due_s.items()):
                    if due_s <= now_s:
                        del self.due_s[number]
                        self._fork(number)
                self._watch(now_s)
            self._reap()
            time.sleep(_POLL_S)
        if self.local_pid:
            os.kill(self.local_pid, signal.SIGTERM)
            os.waitpid(self.local_pid, 0)
        return self.status

    def _watch(self, now_s: float) -> None:
        """Kill a worker whose event loop stands still, say when all of them serve, and end when a successor does."""
        beats = struct.unpack(f"{self.count}d", self.beats)
        limit_s = watchdog_s()
        for pid, number in self.pids.items():
            if limit_s and 0 < beats[number] < now_s - limit_s:
                _log.error("worker %d does not answer for %.0f s and is killed", number, now_s - beats[number])
                os.kill(pid, signal.SIGKILL)
        if not self.ready and all(beats):
            self.ready = True
            _log.info("all %d workers serve", self.count)
            ready(self.listeners, f"{self.count} workers on port {self.listeners[0].getsockname()[1]}")
            arrived()
        if self.handover.done():
            _log.info("the successor serves; what is under way here is finished")
            self._signal(signal.SIGUSR2)
            self.stopping = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Have every worker load the configuration again."""
        self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        for pid in list(self.pids):
            os.kill(pid, number)

    def _fork(self, number: int) -> None:
        def child() -> int:
            self.forked()
            mine = self.listeners[number :: self.count] or [self.listeners[number % len(self.listeners)]]
            for listener in self.listeners:
                if listener not in mine:
                    listener.close()

            def beat(now_s: float) -> None:
                struct.pack_into("d", self.beats, 8 * number, now_s)

            # A signal right after the fork still reaches the handler that came along from the parent.
            book = Book(self.pages, number)
            return _work(self.loaded, self.again, mine, self.count, self.local, lambda: self.stopping, self.memory, book, beat)

        struct.pack_into("d", self.beats, 8 * number, 0.0)
        pid = _forked(child)
        self.pids[pid] = number
        self.born_s[pid] = time.monotonic()

    def _reap(self) -> None:
        while self.pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self.local_pid:
                self.local_pid = 0
                self.stopping = True
                self.status = EXIT_FAILED
                _log.error("the process that serves model files ended with status %d; the gateway stops", code)
                continue
            if pid not in self.pids:
                continue  # as the first process of a container we inherit what others leave behind
            number = self.pids.pop(pid)
            lived_s = time.monotonic() - self.born_s.pop(pid)
            if self.stopping:
                continue
            if code in (EXIT_CONFIG, EXIT_FAILED) and not self.ready:  # it said why; its successor would say the same
                self.stopping = True
                self.status = code
                continue
            self.pause_s[number] = 0.0 if lived_s >= _STEADY_S else min(max(self.pause_s[number] * 2, 0.25), 10.0)
            self.due_s[number] = time.monotonic() + self.pause_s[number]
            _log.error("worker %d ended with status %d after %.1f s; another takes its place", number, code, lived_s)


def _forked(child: Callable[[], int]) -> int:
    """Run ``child`` in a forked process; returns its id. The child never returns from here."""
    pid = os.fork()
    if pid:
        return pid
    status = EXIT_FAILED
    try:
        status = child()
    except BaseException:  # blame: the gateway's own; a forked child must end here and not run the parent's code
        _log.exception("a worker failed")
    finally:
        logging.shutdown()
        os._exit(status)


def _serve_local(config: GatewayConfig, forked: Callable[[], None]) -> tuple[int, Places]:
    """Serve models given as files from one child process for all workers; returns its id and where they are served."""
    reading, writing = os.pipe()

    def child() -> int:
        forked()
        os.close(reading)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        return asyncio.run(_keep_local(config, writing))

    pid = _forked(child)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.readline()
    if not said.startswith(b"{"):
        os.waitpid(pid, 0)
        raise CannotServe(said.decode().strip() or "the process that serves model files ended before it was ready")
    return pid, {name: [(url, key) for url, key in places] for name, places in json.loads(said).items()}


async def _keep_local(config: GatewayConfig, writing: int) -> int:
    from hx_gateway.assembly import local_models
    from hx_gateway.local.supervisor import LocalModelError

    models = local_models(config)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    status = EXIT_OK
    with os.fdopen(writing, "w") as pipe:
        try:
            await asyncio.gather(*(model.start() for _, model in models))
            places: dict[str, list[tuple[str, str]]] = {}
            for name, model in models:
                places.setdefault(name, []).append((model.url, model.api_key))
            pipe.write(json.dumps(places) + "\n")
        except LocalModelError as error:
            pipe.write(str(error).replace("\n", " ") + "\n")
            status = EXIT_FAILED
    parent = os.getppid()
    while status == EXIT_OK and not over.is_set():
        try:
            await asyncio.wait_for(over.wait(), 1.0)
        except TimeoutError:
            if os.getppid() != parent:
                break  # the gateway is gone without a word
    await asyncio.gather(*(model.stop() for _, model in models))
    return status
