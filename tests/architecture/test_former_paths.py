"""The former import paths are signposts: they import public names of `hx_gateway`, define nothing, and nobody depends on them."""

from __future__ import annotations

import ast

import pytest
from tests.architecture.sources import ROOT, modules, shown, tree

import hx_gateway

FORMER = sorted((ROOT / "src" / "hxp_enterprise_llm").rglob("*.py"))


@pytest.mark.parametrize("path", FORMER, ids=shown)
def test_a_former_path_leads_to_public_names_alone(path: object) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body  # type: ignore[attr-defined]
    assert isinstance(body[0], ast.Expr), "it says where it leads"
    for node in body[1:]:
        if isinstance(node, ast.ImportFrom):
            assert node.module == "hx_gateway" and {name.name for name in node.names} <= set(hx_gateway.__all__)
        else:
            assert isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def test_the_gateway_knows_nothing_of_them() -> None:
    assert FORMER and (ROOT / "src" / "hxp_enterprise_llm" / "py.typed").exists()
    for path in modules():
        for node in ast.walk(tree(path)):
            named = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in getattr(node, "names", ())]
                if isinstance(node, ast.Import)
                else []
            )
            assert not any(name.startswith("hxp_enterprise_llm") for name in named), shown(path)
