"""Turns a configuration into the fleet: endpoints, deployments and the names in front of them, keeping live state over rebuilds."""

from __future__ import annotations

import logging
import secrets
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from hx_gateway.config.schema import EndpointSettings, GatewayConfig, ModelSettings, UpstreamSettings, is_url
from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.checks import Notice, expect, judge
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Deadlines, DeploymentOptions, Endpoint, Prices
from hx_gateway.fleet.registry import Kept, Registry, Target
from hx_gateway.health.teach import teach
from hx_gateway.routing.ceilings import limits_of
from hx_gateway.upstream.pool import Pool

if TYPE_CHECKING:
    from hx_gateway.local.supervisor import LocalModel

_ENDPOINT_FAILURES = 2  # failed connections in a row after which a server is left alone, unless fewer are configured
_log = logging.getLogger(__name__)


class Assembly:
    """Builds registries for one configuration.

    An endpoint or deployment that is in the next registry too is the same object, so that what is in flight, its
    breaker and its connections survive.

    Args:
        config: The configuration.
        provider_named: Makes the provider of a name.
        before: The assembly this one takes over from, on reload.
    """

    def __init__(self, config: GatewayConfig, provider_named: Callable[[str], Any], before: Assembly | None = None) -> None:
        self.config = config
        self._before = before
        self._provider_named = provider_named
        self._by_address: dict[tuple[str, str], Endpoint] = {}
        self._named: dict[str, Endpoint] = {}
        self._deployments: dict[tuple[str, str, str], Deployment] = {}
        self._discovered: dict[Endpoint, None] = {}  # those whose models are served without being listed, in order
        self._local: dict[str, list[Endpoint]] = {}
        self._forward: Endpoint | None = None
        self._said: frozenset[str] = before._said if before is not None else frozenset()  # notices in the log
        for name, settings in config.endpoints.items():
            self._named[name] = endpoint = self._endpoint(name, settings.url, settings.provider, settings)
            if settings.discover:
                self._discovered[endpoint] = None
        if before is not None:
            self._keep(before)
        upstream = config.gateway.default_upstream
        if isinstance(upstream, str):
            self._forward = self._place(upstream, UpstreamSettings(url=upstream) if is_url(upstream) else None)
        elif upstream is not None:
            self._forward = self._place(upstream.url, upstream)

    def _keep(self, before: Assembly) -> None:
        """Take over what no configuration lists: servers of our own, and those found on this machine."""
        self._local = {model: endpoints for model, endpoints in before._local.items() if model in self.config.models}
        kept = [endpoint for endpoints in self._local.values() for endpoint in endpoints]
        if not self.config.models and not self.config.endpoints:
            kept += before._discovered
            self._discovered = dict(before._discovered)
        for endpoint in kept:
            self._named[endpoint.name] = endpoint
            self._by_address[str(endpoint.address), endpoint.api_key] = endpoint

    # Endpoints

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Every endpoint, by name."""
        return dict(self._named)

    def found(self, name: str, address: Address, provider: str) -> Endpoint:
        """An endpoint found on this machine; all its models are served."""
        endpoint = self._by_address.get((str(address), ""))
        if endpoint is None:
            endpoint = self._endpoint(self._free_name(name), str(address), provider, None)
            self._named[endpoint.name] = endpoint
        self._discovered[endpoint] = None
        return endpoint

    def local(self, model: str, url: str, api_key: str) -> Endpoint:
        """An endpoint that the gateway runs itself, for the model ``model``."""
        number = len(self._local.setdefault(model, [])) + 1
        name = self._free_name(f"local-{model}" if number == 1 else f"local-{model}-{number}")
        endpoint = self._endpoint(name, url, "openai", None, api_key)
        given = self.config.models.get(model)
        endpoint.configured_slots = endpoint.slots = (given.slots if given is not None else None) or 1
        self._named[name] = endpoint
        self._local[model].append(endpoint)
        return endpoint

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self._named:
            name, number = f"{wanted}-{number}", number + 1
        return name

    def _endpoint(self, name: str, url: str, provider: str | None, settings: EndpointSettings | None, api_key: str = "") -> Endpoint:
        config = self.config
        performance = config.performance
        address = Address.parse(url)

        def limit(setting: str) -> float:
            own = getattr(settings, setting, None) if settings is not None else None
            return float(getattr(performance, setting) if own is None else own)

        waiting_s = limit("request_timeout_seconds")
        if settings is not None and settings.api_key is not None:
            api_key = settings.api_key.reveal()
        endpoint = Endpoint(
            name,
            address,
            self._provider_named(provider) if provider else None,
            api_key=api_key,
            deadlines=Deadlines(
                limit("connect_timeout_seconds"), waiting_s, waiting_s, limit("load_timeout_seconds"), limit("total_timeout_seconds")
            ),
            headers={key: value.reveal() for key, value in settings.headers.items()} if settings is not None else None,
            max_concurrent=settings.max_concurrent if settings is not None else 0,
            tls=_tls(address, settings),
            breaker=self._breaker(_ENDPOINT_FAILURES),
            slots=settings.slots if settings is not None else 0,
            memory_bytes=settings.memory_gb * 1e9 if settings is not None else 0.0,
            max_loaded_models=settings.max_loaded_models if settings is not None else 0,
            disk_rate=settings.disk_gb_per_second * 1e9 if settings is not None else 1e9,
        )
        if settings is not None:
            endpoint.facts.legacy_embeddings = settings.legacy_embeddings
        known = self._before._named.get(name) if self._before is not None else None
        if known is not None and (known.address, known.api_key) == (address, api_key):
            known.adopt(endpoint)
            endpoint = known
        else:
            endpoint.pool = Pool(endpoint, max_body=config.http.max_response_bytes)
        self._by_address[str(address), api_key] = endpoint
        return endpoint

    def _breaker(self, most: int = 0) -> Breaker:
        balancer = self.config.load_balancer
        threshold = balancer.circuit_breaker_threshold
        return Breaker(min(most, threshold) if most else threshold, balancer.circuit_breaker_timeout)

    def _place(self, place: str, settings: ModelSettings | UpstreamSettings | None) -> Endpoint:
        """The endpoint that ``place``, an address or a name, stands for."""
        if not is_url(place):
            return self._named[place]
        address = Address.parse(place)
        secret = settings.api_key if settings is not None else None
        api_key = secret.reveal() if secret is not None else ""
        endpoint = self._by_address.get((str(address), api_key))
        if endpoint is None:
            provider = settings.provider if settings is not None else None
            endpoint = self._endpoint(self._free_name(address.authority + address.base), place, provider, None, api_key)
            self._named[endpoint.name] = endpoint
        return endpoint

    # Names

    def registry(self) -> Registry:
        """The fleet as it is known now."""
        config = self.config
        algorithm = config.load_balancer.algorithm
        models: dict[str, list[Deployment]] = {}
        for name, settings in config.models.items():
            models[name] = [self._deployment(name, endpoint, known, settings) for endpoint, known in self._places(name, settings)]
        for endpoint in self._discovered:
            for known in endpoint.facts.models:
                if known not in config.models and known not in config.groups and known not in config.aliases:
                    models.setdefault(known, []).append(self._deployment(known, endpoint, known, None))
        targets: dict[str, Target] = {}
        notices: list[Notice] = []
        for name, deployments in models.items():
            given = config.models.get(name)
            policy = given.policy if given is not None else None
            targets[name] = self._target(name, "model", deployments, policy=policy or algorithm, notices=notices)
            expect(targets[name].deployments)
        for name, group in config.groups.items():
            members = [deployment for model in group.models for deployment in models.get(model, ())]
            targets[name] = self._target(name, "group", members, group.tier, group.policy or algorithm, notices=notices)
        for alias, name in self._aliases():
            meant = targets.get(name)
            if meant is not None and alias not in targets:
                targets[alias] = self._target(alias, "alias", meant.deployments, meant.tier, meant.policy, meant)
        unlike = {notice.camps: notice for notice in reversed(notices)}  # a model's own, rather than that of a group it is in
        self._announce(unlike.values())
        plan = [kept for name, deployments in models.items() for kept in self._kept(name, deployments)]
        return Registry(targets, self._named, config.gateway.default_model, self._forward, plan, reversed(unlike.values()))

    def known(self) -> object:
        """What the registry depends on besides the configuration; when it has changed, the registry is to be built again."""
        return (
            {name: endpoint.facts.models for name, endpoint in self._named.items()},
            {key: (one.identity, one.dimensions, one.unable) for key, one in self._deployments.items()},
        )

    def _announce(self, notices: Iterable[Notice]) -> None:
        """Log what is new among the notices."""
        said = [notice.says() for notice in notices]
        for text in said:
            if text not in self._said:
                _log.warning("%s", text)
        self._said = frozenset(said)

    def _kept(self, name: str, deployments: Iterable[Deployment]) -> Iterable[Kept]:
        """The part of the placement plan that concerns one model; its requests keep it in memory as long as the plan does."""
        plan = self.config.placement.get(name)
        if plan is None:
            return
        places = {str(Address.parse(place)) if is_url(place) else place for place in plan.keep}
        for deployment in deployments:
            endpoint = deployment.endpoint
            if not places or endpoint.name in places or str(endpoint.address) in places:
                asked, own = _duration(plan.keep_alive), deployment.options.keep_alive
                keep_alive = asked if asked is not None else own if own is not None else -1
                deployment.options.keep_alive = keep_alive
                yield Kept(deployment, keep_alive)

    def _target(
        self,
        name: str,
        kind: str,
        deployments: Iterable[Deployment],
        tier: str = "",
        policy: str = "",
        meant: Target | None = None,
        notices: list[Notice] | None = None,
    ) -> Target:
        members = tuple(deployments)
        excluded = meant.excluded if meant is not None else ()
        if notices is not None:
            judgement = judge(name, members, self.config.load_balancer.digest_policy == "exclude")
            members, excluded = judgement.served, judgement.excluded
            notices += judgement.notices
        modes = {deployment.mode for deployment in members}
        group = b"x-hx-model-group: %b\r\n" % name.encode("ascii", "replace") if kind == "group" else b""
        head = group + b"x-hx-policy: %b\r\n" % policy.encode("ascii", "replace")
        given, filtering = self.config.fallbacks.get(name), self.config.load_balancer.tag_filtering
        return Target(
            name,
            kind,
            members,
            tier,
            policy,
            modes.pop() if len(modes) == 1 else "",
            head,
            given.down if given else meant.down if meant else (),
            given.context if given else meant.context if meant else (),
            excluded,
            group=name if kind == "group" else meant.group if meant is not None else "",
            tagging=filtering if filtering != "off" and any(deployment.tags for deployment in members) else "",
            hidden=name in self.config.gateway.hidden,
        )

    def _aliases(self) -> Iterable[tuple[str, str]]:
        config = self.config
        for name, model in config.models.items():
            for alias in model.aliases:
                yield alias, name
        for name, group in config.groups.items():
            for alias in group.aliases:
                yield alias, name
        for alias, name in config.aliases.items():
            seen = {alias}
            while name in config.aliases and name not in seen:
                seen.add(name)
                name = config.aliases[name]
            yield alias, name

    def _places(self, name: str, settings: ModelSettings) -> Iterable[tuple[Endpoint, str]]:
        """Where a model is served, and the name it has there."""
        known = settings.upstream_model or name
        if settings.path:
            return [(endpoint, known) for endpoint in self._local.get(name, ())]
        places = ([settings.endpoint] if settings.endpoint else []) + list(settings.endpoints)
        if places:
            return [(self._place(place, settings), known) for place in places]
        return [
            (endpoint, same)
            for endpoint in self._discovered
            for same in endpoint.facts.models
            if same == known or same.removesuffix(":latest") == known.removesuffix(":latest")
        ]

    def _deployment(self, model: str, endpoint: Endpoint, known: str, settings: ModelSettings | None) -> Deployment:
        key = (model, endpoint.name, known)
        deployment = self._deployments.get(key)
        if deployment is None:
            given = settings or ModelSettings()
            server = self.config.endpoints.get(endpoint.name)
            if endpoint.provider is None and given.provider:
                endpoint.provider = self._provider_named(given.provider)
            deployment = Deployment(
                model,
                known,
                endpoint,
                weight=given.weight,
                max_concurrent=given.max_concurrent,
                limits=limits_of(given.requests_per_minute, given.tokens_per_minute),
                tags=frozenset(given.tags),
                mode=given.mode,
                prices=Prices(
                    given.cost_per_request,
                    given.cost_per_prompt_token,
                    given.cost_per_completion_token,
                    given.cost_per_cached_token,
                    server.cost_per_hour / 3600 if server is not None else 0.0,
                ),
                options=DeploymentOptions(
                    num_ctx=given.num_ctx,
                    keep_alive=_duration(given.keep_alive),
                    dimensions=given.dimensions,
                    truncate_dimensions=given.truncate_dimensions,
                    embedding_field=given.embedding_field,
                    digest=(given.digest or "").removeprefix("sha256:").lower(),
                    defaults=given.defaults,
                ),
                breaker=self._breaker(),
            )
            before = self._before._deployments.get(key) if self._before is not None else None
            if before is not None and before.endpoint is endpoint:
                before.adopt(deployment)
                deployment = before
            teach(deployment)
            self._deployments[key] = deployment
        return deployment

    def settled(self) -> None:
        """The reload is done: forget what was before."""
        self._before = None


def _duration(value: str | float | None) -> str | int | None:
    """How long a model is kept, as Ollama takes it: whole seconds, or text."""
    return int(value) if isinstance(value, float) else value


def _tls(address: Address, settings: EndpointSettings | None) -> ssl.SSLContext | None:
    if address.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca_file if settings is not None else None)
    if settings is not None and not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def local_models(config: GatewayConfig) -> list[tuple[str, LocalModel]]:
    """The servers to run for models given as files, each with its model's name; none is started yet."""
    from hx_gateway.local.supervisor import LocalModel  # only where a model file is configured

    return [
        (
            name,
            LocalModel(
                name,
                settings.path,
                mode=settings.mode,
                slots=settings.slots or 1,
                context=settings.context or 0,
                threads=settings.threads or 0,
                api_key=secrets.token_urlsafe(24),
                start_timeout_s=config.performance.load_timeout_seconds,
            ),
        )
        for name, settings in config.models.items()
        if settings.path
        for _ in range(settings.replicas)
    ]
