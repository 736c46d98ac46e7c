"""``hx-gateway docs``: the reference pages, generated from the schema and the catalogue of errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from hx_gateway.config.located import Path as SettingPath
    from hx_gateway.config.shape import Shape

_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Secret": "secret"}

_CONFIGURATION = """\
# Configuration

*Generated from the schema by `hx-gateway docs --write`; do not edit.*

The gateway reads one YAML file: the one named on the command line, else `HX_CONFIG`, else `./hx-gateway.yaml`, else
`/etc/hx-gateway/config.yaml`. Without any it runs on defaults and on what it discovers. `hx-gateway check` prints every problem
of a file at once, or what would result from it; `hx-gateway schema` prints its JSON Schema, for editors.

## Environment

The environment wins over the file, and an empty variable counts as not set. Three kinds of names are understood:

- **Fixed names**, listed with their settings below, e.g. `API_GATEWAY_PORT=8080`. `MASTER_KEY` wins over `LITELLM_MASTER_KEY`.
- **`<MODEL>_ENDPOINT`**: where a model is served, with the model's name in upper case and everything but letters and digits as an
  underscore: `MIXTRAL_8X7B_ENDPOINT=http://llm-09:11400`. It replaces `endpoint`, `endpoints` and `path` of that model.
- **`HX__SECTION__KEY`** for every setting, with two underscores between the parts. Names of models, endpoints and groups are found
  without regard to case, and with an underscore for every other character: `HX__MODELS__OPENCHAT_3_5__WEIGHT=0.5`. The value is
  YAML (`[a, b]`, `{a: b}`); for a list, `a,b` does too. `HX__` names win over the fixed names; one that leads nowhere is an error.

## Secrets

A setting of type *secret* takes `env:NAME` (an environment variable), `file:PATH` (a file, relative to the configuration file; a
final line break is dropped) or the secret itself, which `hx-gateway check` advises against. It is never shown in logs, errors or JSON.

Keys that everybody knows from documentation, and keys shorter than 8 characters, are refused. A good key:

```sh
python3 -c "import secrets; print('sk-hx-' + secrets.token_urlsafe(32))"
```

A gateway without any key serves this machine only: listening on another address needs one, and lets nobody in until then.
"""

_ERRORS = """\
# Errors

*Generated from the catalogue by `hx-gateway docs --write`; do not edit.*

Every error has OpenAI's shape: `{"error": {"message": …, "type": …, "param": …, "code": …}}`. The code is stable; the message is
for people. Blame says whose fault it is: breaker, retry and log all read the same row.

- **elsewhere**: another deployment is tried, as long as no byte of an answer was passed on.
- **breaks**: it counts for the circuit breaker of the deployment.
- `upstream_refused` and `upstream_error` keep the model server's own status where it has one.

| code | status | type | blame | elsewhere | breaks | meaning |
|---|---|---|---|---|---|---|
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _rules(annotation: Any) -> list[Any]:
    """The constraints inside an annotation such as ``Annotated[int, Field(ge=1)] | None``."""
    found: list[Any] = []
    for part in get_args(annotation):
        found += [rule for constraint in getattr(part, "__metadata__", ()) for rule in getattr(constraint, "metadata", ())]
    return found


def _bounds(declared: FieldInfo) -> str:
    """The range a number must be in, in words."""
    names = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    rules = [*declared.metadata, *_rules(declared.annotation)]
    return ", ".join(f"{words} {getattr(rule, name):g}" for rule in rules for name, words in names.items() if hasattr(rule, name))


def _type(declared: FieldInfo, shape: Shape) -> str:
    if shape.choices:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in shape.choices)
    words = []
    if shape.section is not None:
        words.append("section")
    if shape.mapping is not None:
        words.append("mapping of names")
    if shape.items is not None:
        words.append("list")
    words += [_TYPES[kind.__name__] for kind in shape.scalars]
    return " or ".join(words) + (f" ({bounds})" if (bounds := _bounds(declared)) else "")


def _default(declared: FieldInfo) -> str:
    if declared.is_required():
        return "*needed*"
    value: Any = declared.default
    if value is None:
        return "none"
    if value == "":
        return "empty"
    if hasattr(value, "model_dump"):
        return "as below"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _variables(path: SettingPath) -> str:
    from hx_gateway.config.environment import NAMES, general_variable

    fixed = [variable for variable, target in NAMES if target == path]
    if path[0] == "models" and path[2:] == ("endpoint",):
        fixed.append("<MODEL>_ENDPOINT")
    general = general_variable(tuple(part for part in path if part not in ("<name>", "<n>")))
    if "<name>" in path or "<n>" in path:
        general = "HX__" + "__".join(str(part).upper() for part in path)
    return ", ".join(f"`{variable}`" for variable in [*fixed, general])


def configuration_page() -> str:
    """The page of every setting, as Markdown."""
    from hx_gateway.config.schema import LATER, GatewayConfig
    from hx_gateway.config.shape import dotted, settings

    lines = [_CONFIGURATION]
    section = ""
    for path, declared, shape in settings():
        if path[0] != section:
            section = str(path[0])
            lines.append(f"\n## {section}\n\n{GatewayConfig.model_fields[section].description}\n")
            lines.append("| setting | type | default | environment | |\n|---|---|---|---|---|")
        if len(path) == 1:
            continue  # said by the heading
        about = (declared.description or "") + (" *Read, but not used by this release.*" if LATER in declared.metadata else "")
        row = (f"`{dotted(path)}`", _type(declared, shape), _default(declared), _variables(path), about)
        lines.append("| " + " | ".join(_cell(cell) for cell in row) + " |")
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def errors_page() -> str:
    """The page of every error code, as Markdown."""
    from hx_gateway.core.errors import CATALOGUE

    rows = [
        (
            f"`{kind.code}`",
            str(kind.status),
            f"`{kind.type}`",
            kind.blame.value,
            "yes" if kind.elsewhere else "no",
            "yes" if kind.breaks else "no",
            kind.about,
        )
        for kind in CATALOGUE
    ]
    return _ERRORS + "".join("| " + " | ".join(_cell(cell) for cell in row) + " |\n" for row in rows)


def pages() -> dict[str, str]:
    """Every generated page by its path below the documentation's directory."""
    from hx_gateway.cli import reference_surface as surface

    return {
        "reference/commands.md": surface.commands_page(),
        "reference/configuration.md": configuration_page(),
        "reference/errors.md": errors_page(),
        "reference/http.md": surface.http_page(),
        "reference/logs.md": surface.logs_page(),
        "reference/metrics.md": surface.metrics_page(),
    }


def stale(directory: Path) -> list[str]:
    """The generated pages below ``directory`` that are missing or out of date."""
    found = []
    for name, page in pages().items():
        path = directory / name
        if not path.is_file() or path.read_text(encoding="utf-8") != page:
            found.append(name)
    return found


def docs(
    write: Annotated[bool, typer.Option("--write/--check", help="Write the pages, or only say which are out of date.")] = False,
    directory: Annotated[Path, typer.Option(help="The documentation's directory.")] = Path("docs"),
) -> None:
    """Write the generated reference pages again, or check that they are fresh (exit code 1 if not)."""
    if not directory.is_dir():
        typer.echo(f"{directory} is no directory: run this where the sources are, or name it with --directory", err=True)
        raise typer.Exit(2)
    old = stale(directory)
    for name in old:
        if write:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[name], encoding="utf-8")
        typer.echo(f"{directory / name}: {'written' if write else 'out of date; run hx-gateway docs --write'}")
    if old and not write:
        raise typer.Exit(1)
