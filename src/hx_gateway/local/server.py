"""The child process: llama.cpp's own HTTP server for one model file, until it is told to stop or its parent is gone.

Run as ``python -m hx_gateway.local.server --path FILE``. When the model is ready it writes one line of JSON to its
standard output, ``{"address": "http://127.0.0.1:PORT", "pid": PID}``, and nothing else. It ends on SIGTERM, on SIGINT, at
the end of its standard input, and on Linux by a signal from the kernel when the parent dies.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

API_KEY_VARIABLE = "HX_LOCAL_API_KEY"  # not an argument: every user of the machine can read those
POOLINGS = ("mean", "cls", "last", "rank")
_PR_SET_PDEATHSIG = 1
_SHORTEST_BATCH, _LONGEST_BATCH = 512, 8192  # tokens
_PROMPT_CACHE_MIB = 512  # llama.cpp would keep up to 8 GiB of old prompts, in each of these processes
_HTTP_THREADS = 256  # each open connection holds one, even idle: with llama.cpp's few, a burst waits 5 s until it closes idle ones
_WARNINGS = 2  # llama.cpp's verbosity: errors and warnings; the next level logs every request


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The child's command line, read."""
    parser = argparse.ArgumentParser(prog="python -m hx_gateway.local.server", description="Serve one GGUF file with llama.cpp.")
    parser.add_argument("--path", required=True, help="model file in GGUF format")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--alias", default="", help="name under which the model answers")
    parser.add_argument("--slots", type=int, default=1, help="requests worked on at once")
    parser.add_argument("--context", type=int, default=0, help="tokens of context for each slot; 0 takes the model's own")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0 leaves it to llama.cpp")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings instead of chat")
    parser.add_argument("--pooling", default="", choices=("", *POOLINGS), help="how token vectors become one; empty takes the model's own")
    parser.add_argument("--parent", type=int, default=0, help="process id without which this one must not live; 0 for none")
    return parser.parse_args(argv)


def end_with_parent(parent_pid: int) -> None:
    """Ask the kernel to end this process when its parent dies; elsewhere than on Linux standard input has to do.

    Raises:
        SystemExit: The parent was gone before the kernel could be asked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent_pid and os.getppid() != parent_pid:
        raise SystemExit("the process that started this model server is gone")


def parameters(options: argparse.Namespace, xllamacpp: Any, api_key: str) -> Any:
    """llama.cpp's parameters for the options given."""
    params = xllamacpp.CommonParams()
    params.model.path = options.path
    params.model_alias = {options.alias or os.path.basename(options.path)}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots  # llama.cpp shares the context out among its slots
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    if options.embedding:
        params.embedding = True
        # An input to embed has to fit one physical batch, which by default is far shorter than most contexts.
        params.n_batch = params.n_ubatch = max(_SHORTEST_BATCH, min(options.context, _LONGEST_BATCH))
        if options.pooling:
            params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
    if api_key:
        params.api_keys = [api_key]
    params.cors_origins = ""  # a page open in a browser on this machine has no business here
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.ui = False
    params.warmup = False
    params.endpoint_metrics = True
    params.n_threads_http = _HTTP_THREADS
    params.verbosity = _WARNINGS
    return params


def wait_for_end(wake_fd: int) -> None:
    """Return when a signal arrived or standard input came to its end."""
    watched = [wake_fd, 0]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if wake_fd in ready or not os.read(0, 4096):
            return


def serve(options: argparse.Namespace) -> int:
    """Load the model, say where it listens, and serve until the end; returns the exit status."""
    try:
        import xllamacpp
    except ImportError as error:
        sys.stderr.write(f"llama.cpp is not installed ({error}): pip install 'hx-gateway[local]'\n")
        return 3
    # llama.cpp may write to standard output, which is for the one line only.
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        server = xllamacpp.Server(parameters(options, xllamacpp, os.environ.pop(API_KEY_VARIABLE, "")))
    except RuntimeError as error:
        sys.stderr.write(f"llama.cpp could not serve {options.path}: {error}\n")
        return 4
    # Until here a signal ends the process at once, which is right while a model loads.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    announce.write(json.dumps({"address": server.listening_address, "pid": os.getpid()}) + "\n")
    announce.close()
    wait_for_end(reading)
    # Not by the interpreter's way out: taking llama.cpp's server down right after its start can hang, and nothing is to be saved.
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the child process."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    end_with_parent(options.parent)
    return serve(options)


if __name__ == "__main__":
    sys.exit(main())
