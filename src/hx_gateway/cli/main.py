"""The command line: one file a command, each imported only when it is asked for."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Callable

# Name, where its function is, and its line in the list; a command takes its options from the function's signature, and a function
# called `group` makes several commands below one name.
COMMANDS = (
    ("serve", "hx_gateway.cli.serve:serve", "Start the gateway."),
    ("demo", "hx_gateway.cli.demo:demo", "Start it with small local models, to try it out."),
    ("check", "hx_gateway.cli.check:check", "Check a configuration and show what would result."),
    ("import-litellm", "hx_gateway.cli.import_litellm:import_litellm", "Make a configuration of a LiteLLM config.yaml."),
    ("compare", "hx_gateway.cli.compare:compare", "Send the same prompts to two gateways and show where they differ."),
    ("simulate", "hx_gateway.cli.simulate:simulate", "Play a trace against simulated servers, policies side by side."),
    ("endpoints", "hx_gateway.cli.endpoints:group", "List the servers of a running gateway, drain one and put it back."),
    ("keys", "hx_gateway.cli.keys:group", "Make, list, rotate, limit and revoke API keys."),
    ("db", "hx_gateway.cli.db:db", "Look at the database of keys and usage, or upgrade it."),
    ("migrate", "hx_gateway.cli.migrate:migrate", "Move everything from one database into another."),
    ("rag", "hx_gateway.cli.rag:group", "Bring documents to a running gateway, search and remove them."),
    ("verify", "hx_gateway.cli.verify:verify", "Ask a running gateway for everything it promises, and report."),
    ("top", "hx_gateway.cli.top:top", "Show the fleet and the traffic of a running gateway, live."),
    ("drill", "hx_gateway.cli.drill:drill", "Kill, slow and cut model servers, and prove that clients do not notice."),
    ("deploy", "hx_gateway.cli.deploy:deploy", "Install or upgrade the gateway as a service on this machine."),
    ("service", "hx_gateway.cli.service:service", "Start, stop or restart the installed service, or show how it is."),
    ("rollback", "hx_gateway.cli.rollback:rollback", "Go back to an earlier release, or to LiteLLM."),
    ("backup", "hx_gateway.cli.backup:backup", "Copy configuration, keys, ledger and vectors into one file."),
    ("restore", "hx_gateway.cli.backup:restore", "Bring back what such a file holds."),
    ("permissions", "hx_gateway.cli.permissions:permissions", "Compare or set owners and modes of what is installed."),
    ("uninstall", "hx_gateway.cli.deploy:uninstall", "Take the service away."),
    ("monitoring", "hx_gateway.cli.monitoring:group", "Write out rules, alerts and a dashboard for Prometheus and Grafana."),
    ("router", "hx_gateway.cli.router:group", "Train, measure and show the scorer that learns which prompt needs which model."),
    ("schema", "hx_gateway.cli.schema:schema", "Print the configuration's JSON Schema."),
    ("docs", "hx_gateway.cli.reference:docs", "Write the generated reference pages again, or check that they are fresh."),
)


def _command(name: str, function: Callable[..., Any], summary: str) -> Any:
    if function.__name__ == "group":
        several = function()
        several.info.help = summary
        return typer.main.get_command(several)
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, help=function.__doc__ or summary)(function)
    return typer.main.get_command(single)


class CommandGroup(TyperGroup):
    """Commands by name; listing them imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name, in the order of the table."""
        return [name for name, _, _ in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command called ``cmd_name``; a usage error if there is none, or it is not part of this installation."""
        for name, path, summary in COMMANDS:
            if name == cmd_name:
                module, _, function = path.partition(":")
                try:
                    return _command(name, getattr(importlib.import_module(module), function), summary)
                except ModuleNotFoundError as error:
                    if error.name != module:
                        raise
                    ctx.fail(f"{cmd_name} is not part of this installation")
        near = get_close_matches(cmd_name, self.list_commands(ctx), n=1)
        return ctx.fail(f"there is no command {cmd_name}" + (f"; did you mean {near[0]}?" if near else ""))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list for ``--help`` from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, _, summary in COMMANDS])


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hx-gateway {version('hx-gateway')}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    """HX Gateway: the one OpenAI-compatible door to a private fleet of model servers."""


def application() -> typer.Typer:
    """The whole command line."""
    # No pretty tracebacks: they show local variables, and those hold keys.
    app = typer.Typer(
        name="hx-gateway",
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return app


def main() -> None:
    """What the ``hx-gateway`` script runs."""
    application()(prog_name="hx-gateway")
