"""The text of the systemd unit: readiness and watchdog, limits from the configuration, and as few rights as the gateway can do with."""

from __future__ import annotations

from dataclasses import dataclass

from hx_gateway.ops.host import PORT_LIMIT, USER

_TEXT = """\
# Written by `hx-gateway deploy`, and written again by the next one. Put changes of your own beside it: systemctl edit hx-gateway
[Unit]
Description=HX Gateway, the OpenAI-compatible door to a fleet of model servers
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=20

[Service]
Type=notify
NotifyAccess=all
ExecStart={command} serve {config}
ExecReload=/bin/kill -HUP $MAINPID
EnvironmentFile=-{environment}
User={user}
Group={user}
StateDirectory=hx-gateway
StateDirectoryMode=0750
LogsDirectory=hx-gateway
LogsDirectoryMode=0750
WorkingDirectory=/var/lib/hx-gateway
UMask=0077

# Listening sockets are kept while the service is started again: who connects meanwhile waits and is not refused.
FileDescriptorStoreMax=256
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=78
WatchdogSec=20
TimeoutAbortSec=5
TimeoutStartSec=180
TimeoutStopSec={stop_s:.0f}
KillMode=mixed

LimitNOFILE=65536
TasksMax=4096
{limits}
NoNewPrivileges=yes
{rights}
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers={private_users}
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
_LITELLM = """\
# Written by `hx-gateway rollback --to-litellm`; `hx-gateway rollback` or `hx-gateway deploy` takes it away.
[Service]
Type=exec
WatchdogSec=0
FileDescriptorStoreMax=0
MemoryDenyWriteExecute=no
ExecStart=
ExecStart={program} --config {config} --host {host} --port {port}
ExecReload=
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of the configuration the unit enforces.

    Args:
        memory_gb: Memory it may use, in GB; None for no limit.
        cpu_cores: Processor cores it may use; None for no limit.
        port: TCP port it listens on.
        drain_s: Seconds that running requests get at the end.
    """

    memory_gb: float | None = None
    cpu_cores: int | None = None
    port: int = 8000
    drain_s: float = 30.0


def unit_text(command: str, config: str, environment: str, limits: Limits) -> str:
    """The unit.

    Args:
        command: Path of the gateway's command.
        config: Path of its configuration.
        environment: Path of its environment file, which may be missing.
        limits: What it may use.
    """
    lines = []
    if limits.memory_gb is not None:
        megabytes = round(limits.memory_gb * 1024)
        lines += [f"MemoryHigh={megabytes * 9 // 10}M", f"MemoryMax={megabytes}M"]
    if limits.cpu_cores is not None:
        lines.append(f"CPUQuota={limits.cpu_cores * 100}%")
    low = limits.port < PORT_LIMIT
    right = "CAP_NET_BIND_SERVICE" if low else ""
    return _TEXT.format(
        command=command,
        config=config,
        environment=environment,
        user=USER,
        stop_s=limits.drain_s + 30,
        limits="\n".join([*lines, ""]) if lines else "",
        rights=f"CapabilityBoundingSet={right}\nAmbientCapabilities={right}",
        # A right to the machine's low ports is worth nothing within user ids of one's own.
        private_users="no" if low else "yes",
    )


def litellm_text(program: str, config: str, host: str, port: int) -> str:
    """What makes the unit start LiteLLM instead, as a file beside it."""
    return _LITELLM.format(program=program, config=config, host=host, port=port)
