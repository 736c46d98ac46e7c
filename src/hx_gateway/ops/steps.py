"""The steps of a deployment, each with its look, its deed and its way back."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from hx_gateway.ops import release as releases
from hx_gateway.ops.bundle import Source
from hx_gateway.ops.first import CONFIGURATION, ENVIRONMENT, imported
from hx_gateway.ops.host import USER, Host, Refused, last_words, owner_of
from hx_gateway.ops.plan import Step, Undo
from hx_gateway.ops.requirements import taken
from hx_gateway.ops.service import restart, start
from hx_gateway.ops.unit import Limits, unit_text
from hx_gateway.ops.validation import Service, key_for_validation, ready, service_of, validate


@dataclass
class Deployment:
    """What is to be deployed, and what is found out on the way.

    Args:
        host: Where.
        source: What.
        python: Python of its environment.
        config: A file to take as configuration where there is none; None for a first one that searches this machine.
        litellm: A LiteLLM configuration to take instead.
        master_key: The admin key; empty to make one where there is none.
        lenient: Whether back ends may be away.
        start: Whether the service is started.
        made_key: An admin key that was made, to be shown once.
        told: What there is to say at the end.
    """

    host: Host
    source: Source
    python: Path
    config: Path | None = None
    litellm: Path | None = None
    master_key: str = ""
    lenient: bool = False
    start: bool = True
    made_key: str = ""
    told: list[str] = field(default_factory=list)
    _acted: bool = False  # whether the service was started or handed over
    _disturbed: bool = False  # whether what ran before no longer does

    @cached_property
    def first(self) -> bool:
        """Whether nothing was deployed here before."""
        return self.host.release() is None

    @property
    def release(self) -> Path:
        """Where the release lies, or will."""
        return releases.place_of(self.host, self.source)

    @property
    def ready(self) -> bool:
        """Whether the release can be asked."""
        return bool(releases.contents(self.release))

    def checked(self) -> dict[str, Any]:
        """What the release makes of the configuration.

        Raises:
            Refused: It cannot be used.
        """
        done = self.host.gateway(self.release, "check", self.host.config, "--json")
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise Refused(f"the configuration cannot be checked: {last_words(done)}") from None
        if not found["ok"]:
            problems = "\n".join(f"  {one.get('path') or one.get('source') or ''}: {one['message']}" for one in found["problems"])
            raise Refused(f"{self.host.config} cannot be used:\n{problems}\ncorrect it, then run this again")
        return found

    def service(self) -> Service:
        """Where the service listens and what it may use."""
        return service_of(self.checked())

    def steps(self) -> list[Step]:
        """The plan."""
        host, name = self.host, self.release.name
        listed = [
            Step("user", f"system user {USER}, without shell and home", self._user_pending, self._add_user),
            Step("directories", "folders with their owners and modes", self._folders_pending, self._make_folders),
            Step("release", f"release {name} installed in {self.release}", self._release_pending, self._install),
            Step("configuration", f"a configuration in {host.config}", self._config_pending, self._configure),
            Step("environment", f"an environment file in {host.environment}, 640 root:{USER}", self._environment_pending, self._environ),
            Step("database", "a database that the release can work with", lambda: "", self._database, test=True),
            Step("key", "an admin key, kept as a hash", self._key_pending, self._key),
            Step("check", "a configuration that the release accepts", lambda: "", self._check, test=True),
            Step("back ends", "model servers that answer and have what is asked of them", lambda: "", self._back_ends, test=True),
            Step("unit", f"the unit in {host.unit}", self._unit_pending, self._unit),
            Step("switch", f"release {name} in use", self._switch_pending, partial(releases.switch, host, self.release)),
            Step("command", f"the command {host.command}", self._command_pending, self._command),
        ]
        if self.start:
            listed += [
                Step("enable", "started with the machine", self._enable_pending, self._enable),
                Step("start", f"the service running with release {name}", self._start_pending, self._start),
                Step("validation", "an answer to readiness, models and a chat", lambda: "", self._validate, test=True),
            ]
        listed.append(Step("tidy", "no more old releases than needed", self._tidy_pending, self._tidy))
        return listed

    def recover(self) -> None:
        """After a failure, when the steps are taken back: have the service run as before."""
        if self._disturbed and self.host.unit.exists():
            restart(self.host, full=True)

    # User and folders

    def _user_pending(self) -> str:
        return "" if self.host.user_known() else "there is none"

    def _add_user(self) -> Undo:
        shell = next((place for place in ("/usr/sbin/nologin", "/sbin/nologin") if Path(place).exists()), "/bin/false")
        self.host.do("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell, USER)
        return partial(self.host.do, "userdel", USER)

    def _folders(self) -> list[tuple[Path, str, str, int]]:
        host = self.host
        return [
            (host.prefix, "root", "root", 0o755),
            (host.releases, "root", "root", 0o755),
            (host.configuration, "root", USER, 0o750),
            (host.state, USER, USER, 0o750),
            (host.log, USER, USER, 0o750),
        ]

    def _folders_pending(self) -> str:
        real = self.host.root == Path("/")
        for path, user, group, mode in self._folders():
            if not path.is_dir():
                return f"{path} is not there"
            if (owner_of(path) if real else ("", "", owner_of(path)[2])) != ((user, group, mode) if real else ("", "", mode)):
                return f"{path} has another owner or mode"
        return ""

    def _make_folders(self) -> Undo:
        made = []
        for path, user, group, mode in self._folders():
            if not path.is_dir():
                path.mkdir(parents=True)
                made.append(path)
            self.host.own(path, user, group, mode)

        def undo() -> None:
            for path in reversed(made):
                shutil.rmtree(path)

        return undo

    # Release, configuration, key

    def _release_pending(self) -> str:
        return "" if self.ready else "it is not there" if not self.release.exists() else "an earlier run did not finish it"

    def _install(self) -> Undo:
        return releases.install(self.host, self.source, self.python)

    def _config_pending(self) -> str:
        return "" if self.host.config.exists() else "there is none"

    def _configure(self) -> Undo:
        host = self.host
        if self.litellm is not None:
            content, told = imported(host, self.release, self.litellm)
            self.told += told
        elif self.config is not None:
            content = self.config.read_bytes()
        else:
            content = CONFIGURATION.format(path=host.config).encode()
        host.write(host.config, content, 0o640, USER)
        return partial(host.config.unlink, missing_ok=True)

    def _environment_pending(self) -> str:
        path = self.host.environment
        return "" if path.exists() and owner_of(path)[2] == 0o640 else "it has another mode" if path.exists() else "there is none"

    def _environ(self) -> Undo | None:
        path = self.host.environment
        if path.exists():
            self.host.own(path, "root", USER, 0o640)
            return None
        self.host.write(path, ENVIRONMENT.encode(), 0o640, USER)
        return path.unlink

    def _database(self) -> None:
        if fault := releases.schema_fault(self.host, self.release):
            raise Refused(f"{fault}: install a release that does, or restore a copy from before (hx-gateway restore)")

    def _key_pending(self) -> str:
        known = self.host.record().get("admin_key")
        if self.master_key:
            return "" if known == _hash(self.master_key) else "MASTER_KEY is another than before" if known else "MASTER_KEY is new"
        if known or not self.ready or not self.host.config.exists():
            return "" if known else "there is none yet"
        keys = json.loads(self.host.gateway(self.release, "check", self.host.config, "--json").stdout or "{}").get("keys") or {}
        return "" if keys.get("master") or keys.get("names") or keys.get("stored") else "there is none"

    def _key(self) -> None:
        """Keep the hash of the admin key in the store. There is no way back: what has been shown may be in use."""
        # By the release in use: a newer one would change the schema of the database under it.
        host, key, used = self.host, self.master_key, self.host.release() or self.release
        verb = ["rotate", "admin", "--grace", "0"] if host.record().get("admin_key") else ["create", "admin", "--admin"]
        words = ["keys", *verb, "--config", str(host.config), *(["--stdin"] if key else [])]
        done = host.gateway(used, *words, given=key or None)
        if done.returncode and "create" in verb and "admin" in done.stderr:  # an earlier run got this far
            done = host.gateway(used, "keys", "rotate", "admin", "--grace", "0", *words[4:], given=key or None)
        if done.returncode:
            raise Refused(f"the admin key could not be kept: {last_words(done)}")
        made = done.stdout.strip().splitlines()[-1]
        host.note(admin_key=_hash(made))
        if not key:
            self.made_key = made
        self.master_key = made

    def _check(self) -> None:
        found = self.checked()
        self.told += [f"warning: {one['message']}" for one in found["warnings"]]
        port = service_of(found).port
        if self.start and not self.host.active() and taken(port):
            raise Refused(f"port {port} is taken by another program: stop it, or set service.port in {self.host.config}")

    def _back_ends(self) -> None:
        done = self.host.gateway(self.release, "check", self.host.config, "--live", "--json", within_s=120)
        try:
            live = json.loads(done.stdout)["live"]
        except (ValueError, KeyError):
            raise Refused(f"the back ends cannot be asked: {last_words(done)}") from None
        errors = [str(finding["message"]) for finding in live["findings"] if finding.get("level") == "error"]
        self.told += [f"warning: {message}" for message in errors]
        if errors and self.first and not self.lenient:
            raise Refused("; ".join(errors) + ". Mend it, or say --force to install all the same")

    # Unit, links, service

    def _unit_text(self) -> str:
        host, service = self.host, self.service()
        limits = Limits(service.memory_gb, service.cpu_cores, service.port, service.drain_s)
        return unit_text(str(host.current / "bin/hx-gateway"), str(host.config), str(host.environment), limits)

    def _unit_pending(self) -> str:
        unit = self.host.unit
        if not unit.exists():
            return "there is none"
        if self.host.litellm.exists():
            return "it starts LiteLLM"
        if not self.ready:
            return "it is compared once the release is there"
        try:
            return "" if unit.read_text() == self._unit_text() else "it is another"
        except Refused as error:
            return str(error)

    def _unit(self) -> Undo:
        host = self.host
        litellm = host.litellm
        before = {path: path.read_bytes() if path.exists() else None for path in (host.unit, litellm)}

        def undo() -> None:
            for path, content in before.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    host.write(path, content, 0o644)
            host.run("systemctl", "daemon-reload")

        try:
            host.write(host.unit, self._unit_text().encode(), 0o644)
            litellm.unlink(missing_ok=True)
            host.systemctl("daemon-reload")
        except (Refused, OSError):
            undo()
            raise
        return undo

    def _switch_pending(self) -> str:
        used = self.host.release()
        return "" if used == self.release else f"{used.name} is" if used is not None else "none is"

    def _command_pending(self) -> str:
        place = self.host.command
        if place.exists() and not place.is_symlink():
            return "another program is there"
        return "" if place.is_symlink() and os.readlink(place) == str(self.host.current / "bin/hx-gateway") else "it is not there"

    def _command(self) -> Undo:
        place = self.host.command
        if place.exists() and not place.is_symlink():
            raise Refused(f"{place} is another program: move it away")
        self.host.link(place, self.host.current / "bin/hx-gateway")
        return place.unlink

    def _enable_pending(self) -> str:
        return "" if self.host.run("systemctl", "is-enabled", self.host.unit.name).stdout.strip() == "enabled" else "it is not"

    def _enable(self) -> Undo:
        self.host.systemctl("enable", self.host.unit.name)
        return partial(self.host.systemctl, "disable", self.host.unit.name)

    def _start_pending(self) -> str:
        host = self.host
        if not host.active():
            return "it does not run"
        if host.record().get("runs") != host.runs(self.release.name):
            return "it runs with another release, unit or environment"
        return ""

    def _start(self) -> Undo:
        host, before, was = self.host, self.host.record(), self.host.active()
        now, changes = host.started(), releases.upgrades(host, self.release)
        self._acted = True

        def undo() -> None:
            host.note(**{"runs": None, "started": None, **before})
            if not was:
                host.systemctl("stop", host.unit.name)
            if changes:
                releases.schema_back(host, self.release)

        if not was:
            start(host, try_on=False)
        else:
            # With the same unit and environment the next release takes over while this one finishes. Else it must be started anew, also
            # where the schema changes under what still runs.
            self._disturbed = full = before.get("started") != now or changes
            try:
                self.told.append(f"the service was {restart(host, full)}")
            except Refused:
                undo()
                raise
            self._disturbed = True
        host.note(runs=host.runs(self.release.name), started=now)
        return undo

    def _validate(self) -> None:
        if not self._acted and not self.master_key:
            ready(self.service().url)  # making a key to ask with would be a change
            return
        with key_for_validation(self.host, self.release, self.master_key) as key:
            self.told += validate(self.host, self.release, self.checked(), key)

    def _tidy_pending(self) -> str:
        found = releases.surplus(self.host)
        return f"{', '.join(path.name for path in found)} can go" if found else ""

    def _tidy(self) -> None:
        for path in releases.surplus(self.host):
            shutil.rmtree(path)


def _hash(key: str) -> str:
    return "sha256:" + sha256(key.encode()).hexdigest()
