"""The commands on the page about documents run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess

from tests.architecture.sources import ROOT
from tests.integration.rag.test_routes import house  # noqa: F401
from tests.support import required
from tests.support.documents import House
from tests.support.gateway import KEY


def test_the_page_s_commands(house: House) -> None:  # noqa: F811
    required.program("curl")
    page = (ROOT / "docs" / "how-to" / "rag.md").read_text(encoding="utf-8")
    # What moves documents to another store is run by the tests of `rag migrate`.
    blocks = re.findall(r"^```sh\n(curl .*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    answers = []
    for block in blocks:
        script = "set -eu\n" + block.replace("curl ", "curl --silent --show-error ").replace('" -H', '" -w "\\n" -H')
        environment = {**os.environ, "GATEWAY": house.gateway.url, "KEY": KEY}
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        answers += [json.loads(line) for line in done.stdout.splitlines() if line]
    added, hybrid, sparse, gone, collections = answers
    assert added["result"]["stored"] == 2 and all(answer["status"] == "ok" for answer in answers)
    assert isinstance(hybrid["result"]["points"], list)
    assert [point["payload"]["document"] for point in sparse["result"]["points"]] == ["lamp"]
    assert gone["result"]["deleted"] == 2 and collections["result"]["collections"][0]["namespaces"]["manuals"] == 1
