"""The commands and programs on the pages for users run as they stand there, page by page, in order; what cannot run here is in a table with the reason."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT
from tests.faults.conftest import wait_until
from tests.support import required
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess, free_port

from hx_gateway.testing.script import Model

LANGUAGES = ("sh", "bash", "python")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md")), *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
OTHERS = {
    "docs/how-to/extend.md": "tests/integration/library/test_extend_page.py",
    "docs/how-to/maintain.md": "tests/integration/ops/test_maintain_page.py",
}
"""Pages with a test of their own."""

ROOT_NEEDED = re.compile(r"\bsudo |\bhx-gateway service ")
"""What says on the page that a block needs root or the service of systemd; tests/system has these."""
NOT_HERE = {
    "README.md": {"make demo": "tests/e2e/test_demo.py runs the demo; the suite cannot run the suite"},
    "docs/tutorials/first-steps.md": {
        "make demo": "tests/e2e/test_demo.py runs the demo",
        "ps ax": "kills a server of the demo: tests/e2e/test_demo.py",
    },
    "docs/tutorials/from-clone-to-server.md": {"git clone": "needs the repository's address", "make bundle": "needs another machine"},
    "docs/how-to/deploy.md": {"make bundle": "needs a package index, and minutes: tests/system"},
    "docs/how-to/develop.md": {"make venv": "makes what is running here, and runs the suite"},
    "docs/how-to/drill.md": {"hx-gateway drill\n": "takes half a minute: tests/integration/ops/test_drill.py"},
    "docs/how-to/grow.md": {"docker build": "needs Docker", "printf": "needs Docker, and images from the internet"},
    "docs/how-to/learned-routing.md": {
        "hx-gateway router promote": "needs a trained artifact: tests/integration/routing/test_learned_live.py",
        "curl -s $GATEWAY/admin/learning": "needs an artifact in shadow: tests/integration/routing/test_learned_live.py",
    },
    "docs/how-to/migrate-stores.md": {"hx-gateway migrate --hold": "waits until a gateway ends: tests/integration/stores/test_migrate.py"},
    "docs/how-to/rag.md": {
        "curl": "tests/integration/rag/test_page.py",
        "hx-gateway rag migrate": "needs Qdrant: tests/integration/vectors/test_moving.py",
    },
    "docs/how-to/serve-a-model-file.md": {"pip install": "needs a package index"},
}
"""Of a page, how blocks begin that are not run by this test, and why."""

LITELLM = """
model_list:
  - {{model_name: hx-chat, litellm_params: {{model: "openai/llama3.2:3b", api_base: "{model_server}/v1", api_key: none}}}}
general_settings: {{master_key: os.environ/LITELLM_MASTER_KEY}}
"""
FILES = {
    "docs/how-to/from-litellm.md": {"config.yaml": LITELLM},
    "docs/how-to/ingest.md": {"docs/old.md": "# Old\n\nThe door opened at ten.\n", "handbook.md": "# Doors\n\nThe door opens at nine.\n"},
}
"""What lies in the folder already."""
BEFORE = {
    "docs/how-to/learned-routing.md": (
        'for n in $(seq 60); do echo "{\\"prompt\\": \\"Question $n?\\", \\"scores\\": {\\"small\\": $((n % 2)), \\"large\\": 1}}"; done > answers.jsonl\n'
    ),
    "docs/how-to/migrate-stores.md": 'DATABASE_URL="sqlite:///$PWD/source.db" hx-gateway keys create app\n',
}
"""What was done before."""

SWAPS = {
    "docs/how-to/drill.md": {"--yes-really": "--yes-really --seconds 0.2 --clients 2"},
    "docs/how-to/embed.md": {"await asyncio.Event().wait()": "pass", "port=8000": "port={port}", "http://llm-09:11403": "{model_server}"},
    "docs/how-to/from-litellm.md": {
        "--port 8000": "--port {port}", "http://127.0.0.1:8000": "http://127.0.0.1:{port}", "http://127.0.0.1:4000": "http://127.0.0.1:{other}",
        "LITELLM_CONFIG=config.yaml": "mkdir another; cd another; LITELLM_CONFIG=../config.yaml", "litellms-key": "{key}", "the-gateways-key": "{key}", "your-key": "{key}",
    },
    "docs/how-to/learned-routing.md": {"01JABCDEFGHJKMNPQRSTVWXYZ0": "{asked}", "--embedding minilm": "--embedding emb-premium"},
    "docs/how-to/migrate-stores.md": {
        "sqlite:////var/lib/hx-gateway/hx-gateway.db": "sqlite:///{scratch}/source.db",
        "postgresql://gateway@db.example/gateway": "sqlite:///{scratch}/target.db",
        "/var/lib/hx-gateway/new.db": "{scratch}/new.db",
    },
    "docs/how-to/monitor.md": {"/etc/prometheus/hx-gateway": "{scratch}/prometheus"},
    "docs/how-to/size-a-fleet.md": {"docs/how-to/fleets": f"{ROOT}/docs/how-to/fleets"},
    "README.md": {"http://127.0.0.1:8000": "http://127.0.0.1:{other}"},
}  # fmt: skip
"""What a page says that is something else here; all pages' address, key and file of the gateway are known by themselves."""
EVERYWHERE = {
    "http://127.0.0.1:8000": "{url}", "localhost:8000": "{url}", "hx-…": "{key}", "…": "{key}", "/etc/hx-gateway/config.yaml": "{config}",
    "http://llm-01:11434": "{model_server}", "http://llm-02:11434": "{model_server}",
}  # fmt: skip
PRELUDE = r"""
curl() { command curl --fail-with-body --show-error "$@"; }
# What serves in the foreground on the page serves beside the next command here.
hx-gateway() {
  if [ "$1" != serve ]; then command hx-gateway "$@"; return; fi
  local port=$API_GATEWAY_PORT; [ "$#" = 1 ] || port=${!#}
  command hx-gateway "$@" &
  until command curl -sf "http://127.0.0.1:$port/readyz"; do kill -0 $!; sleep 0.1; done
}
trap 'status=$?; for job in $(jobs -p); do kill "$job" || :; done; wait; exit $status' EXIT
"""
CONFIG = """
endpoints:
  llm-01: {{url: "{one}", provider: openai}}
  llm-02: {{url: "{two}", provider: openai}}
models:
  "llama3.2:3b": {{endpoints: [llm-01, llm-02], mode: chat}}
  phi3: {{endpoints: [llm-01, llm-02], mode: chat}}
  emb-premium: {{endpoints: [llm-01, llm-02], mode: embedding, dimensions: 1024}}
groups:
  hx-chat: {{models: ["llama3.2:3b", phi3]}}
  hx-chat-fast: {{models: [phi3]}}
  hx-chat-premium: {{models: ["llama3.2:3b"]}}
  chat: {{models: [phi3, "llama3.2:3b"], learned: {{strong_share: 0.3}}}}
gateway: {{default_model: hx-chat}}
load_balancer: {{algorithm: round_robin}}
storage: {{state_directory: {state}}}
"""


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page: its language, the number of its first line, and its text."""

    page: str
    language: str
    line: int
    text: str

    @property
    def entry(self) -> tuple[str, str] | None:
        """The table's entry that it is."""
        return next(((self.page, start) for start in NOT_HERE.get(self.page, ()) if self.text.startswith(start)), None)

    @property
    def run(self) -> bool:
        """Whether it is run here."""
        return self.language in LANGUAGES and self.entry is None and not ROOT_NEEDED.search(self.text)


def blocks() -> list[Block]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```([^\n]*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
            body = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
            found.append(Block(str(path.relative_to(ROOT)), match[2], text.count("\n", 0, match.start(3)) + 1, body))
    return [block for block in found if block.page not in OTHERS]


BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.run]


def test_the_table_is_true() -> None:
    met = {block.entry for block in BLOCKS if block.language in LANGUAGES and not ROOT_NEEDED.search(block.text)}
    assert {(page, start) for page, starts in NOT_HERE.items() for start in starts} == met - {None}, "entries that match no block"
    whys = [why for starts in NOT_HERE.values() for why in starts.values()]
    whys += OTHERS.values()
    assert [path for why in whys for path in re.findall(r"tests/[\w./]+\w", why) if not (ROOT / path).exists()] == []
    for page, swaps in SWAPS.items():
        said = "".join(block.text for block in RUN if block.page == page)
        assert [text for text in swaps if text not in said] == [], page
    plain = [block for block in BLOCKS if not block.language and re.match(r"(\S+=\S* )?(curl|hx-gateway|make|sudo|pip) ", block.text)]
    assert plain == [], "commands in a block that is not marked as sh"
    assert {*FILES, *SWAPS, *BEFORE} <= {block.page for block in RUN}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A gateway that is what the pages speak of, and the words that stand for it in them."""
    required.program("curl")
    required.vectors()
    state = tmp_path_factory.mktemp("state")
    models = (Model("llama3.2:3b", ("completion",)), Model("phi3", ("completion",)), Model("phi-3-mini", ("completion",)))
    vectors = Model("emb-premium", ("embedding",), dimensions=1024)
    with (
        scripted("openai", models=(*models, vectors)) as one,
        scripted("openai", models=(*models, vectors)) as two,
        GatewayProcess(CONFIG.format(one=one.url, two=two.url, state=state)) as gateway,
    ):
        words = {"url": gateway.url, "key": KEY, "config": str(gateway.path), "model_server": one.url}
        yield {**words, "asked": asked(gateway)}
        assert "Traceback" not in gateway.log, gateway.log


def asked(gateway: GatewayProcess) -> str:
    """Use it: a document is added, a question is asked. The id of the request whose record has reached the store."""

    def ask(method: str, path: str, body: str | None = None) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        try:
            connection.request(method, path, body, {"authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            return answer.status, answer.getheader("x-hx-decision-id") or "", answer.read().decode()
        finally:
            connection.close()

    kept = {"namespace": "manuals", "documents": [{"id": "lamp", "text": "The lamp is lit at dusk."}]}
    assert ask("POST", "/v1/rag/upsert", json.dumps(kept))[0] == 200
    question = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
    status, known_as, text = ask("POST", "/v1/chat/completions", json.dumps(question))
    assert status == 200, text
    wait_until(lambda: ask("GET", f"/admin/requests/{known_as}")[0] == 200)
    return known_as


@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_what_stands_on_the_page_runs(page: str, known: dict[str, str], tmp_path: Path) -> None:
    ports = {"port": str(free_port()), "other": str(free_port())}
    words = {**known, **ports, "scratch": str(tmp_path)}

    def here(text: str) -> str:
        for said, meant in (*SWAPS.get(page, {}).items(), *EVERYWHERE.items()):
            text = text.replace(said, re.sub(r"{(\w+)}", lambda name: words[name[1]], meant))
        return text

    for name, text in FILES.get(page, {}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.format(**words))
    script = PRELUDE + BEFORE.get(page, "")
    for block in BLOCKS:
        if block.page != page:
            continue
        if block.language == "yaml" and not (tmp_path / "gateway.yaml").exists():
            (tmp_path / "gateway.yaml").write_text(here(block.text))  # the first that a page shows
        if not block.run:
            continue
        script += f"echo '== {page}:{block.line}' >&2\n"
        if block.language == "python":
            (tmp_path / f"{block.line}.py").write_text(here(block.text))
            script += f"python {block.line}.py\n"
        else:
            script += here(block.text)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HX_")},
        "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path / "states"), "HOME": str(tmp_path),
        "API_GATEWAY_PORT": ports["other"], "MASTER_KEY": KEY, "ADMIN_KEY": KEY, "KEY": KEY, "HX_API_KEY": KEY, "ID": known["asked"],
        "GATEWAY": known["url"], "HX_URL": known["url"], "HX_CONFIG": known["config"],
    }  # fmt: skip
    if page in FILES:
        del environment["HX_CONFIG"]  # the page brings its own
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
