"""What a first deployment writes where there is nothing yet: configuration and environment file, or those of a LiteLLM that was here."""

from __future__ import annotations

from pathlib import Path

from hx_gateway.ops.host import USER, Host, Refused, environment_of, last_words, open_unlinked

CONFIGURATION = """\
# The gateway's configuration. Every setting: hx-gateway docs, or docs/reference/configuration.md
# Check it with: hx-gateway check {path}
service:
  host: 0.0.0.0
  port: 8000

# Where the models are. Without any, the usual ports of this machine are searched.
# endpoints:
#   llm-01: {{url: "http://llm-01:11434"}}
"""
ENVIRONMENT = """\
# Secrets and overrides of the service, NAME=value; readable for root and the service alone.
# Take what changed here into use with: hx-gateway service restart --full
"""
_LISTEN = """
# LiteLLM is told its address on its command line. Port 4000 takes its place, once it is stopped.
service: {host: 0.0.0.0, port: 8000}
"""


def imported(host: Host, release: Path, litellm: Path) -> tuple[bytes, list[str]]:
    """Turn a LiteLLM configuration into ours, with a copy of it kept and its secrets in the environment file; what stands there already stays.

    Args:
        host: The machine.
        release: The release that does it, as the service's user.
        litellm: LiteLLM's file.

    Returns:
        The configuration, and what is to be said of it.

    Raises:
        Refused: It cannot be imported.
        OSError: It cannot be read.
    """
    kept = host.configuration / "litellm.yaml"
    host.write(kept, litellm.read_bytes(), 0o640, USER)
    made = host.state / "imported.yaml"
    done = host.gateway(release, "import-litellm", kept, "--out", made, "--force")
    if not made.exists():
        raise Refused(f"{litellm} could not be imported: {last_words(done)}")
    with open_unlinked(made) as stream:
        content = stream.read()
    secrets = made.with_name(f"{made.name}.env")
    with open_unlinked(secrets) as stream:
        given = stream.read().decode()
    before = host.environment.read_text(encoding="utf-8") if host.environment.exists() else ENVIRONMENT
    known = environment_of(before)
    more = [line for line in given.splitlines()[3:] if line.removeprefix("#").partition("=")[0] not in known]
    host.write(host.environment, "\n".join([before.rstrip("\n"), *more, ""]).encode(), 0o640, USER)
    made.unlink()
    secrets.unlink()
    told = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.strip()]
    return content + (b"" if b"\nservice:" in content else _LISTEN.encode()), told
