"""Carries over what a LiteLLM file says about names: groups, aliases, and which name stands in for which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hx_gateway.config.litellm_draft import Draft
from hx_gateway.config.located import Path
from hx_gateway.config.shape import nearest, shown

Members = dict[str, list[str]]
"""The models behind each name."""


def names_of(members: Members, draft: Draft) -> set[str]:
    """Every name a client may use so far."""
    return {*members, *draft.data.get("models", {}), *draft.data.get("groups", {}), *draft.data.get("aliases", {})}


def groups(draft: Draft, given: Any, members: Members) -> None:
    """Groups under a key that LiteLLM does not have, made real."""
    path: Path = ("router_settings", "model_group")
    entries: Iterator[tuple[Path, str, Any]]
    if isinstance(given, dict):
        entries = (((*path, name), name, content) for name, content in given.items())
    elif isinstance(given, list):
        entries = _listed(path, given)
    else:
        draft.say("manual", path, "should map names of groups to lists of models; LiteLLM has no such key and ignored it")
        return
    for where, name, content in entries:
        listed = content.get("models", content.get("model")) if isinstance(content, dict) else content
        wanted = [str(one) for one in (listed if isinstance(listed, list) else [listed])] if listed else []
        unknown = [one for one in wanted if one not in members]
        found = list(dict.fromkeys(model for one in wanted if one in members for model in members[one]))
        if name in names_of(members, draft):
            draft.say(
                "manual", where, "is the name of a model already, whose rows are the group (LiteLLM ignored this key); rename one of them"
            )
        elif unknown or not found:
            hint = nearest(unknown[0], members) if unknown else ""
            missing = f"there is no model called {shown(unknown[0])} in model_list{hint}" if unknown else "it lists no models"
            draft.say("manual", where, f"LiteLLM ignored this key, and {missing}")
            if found:
                _group(draft, name, found, members)
        else:
            _group(draft, name, found, members)
            why = "LiteLLM has no key model_group and ignored it without a word; it is a real group now"
            draft.say("ignored-by-LiteLLM", where, why, ("groups", name))


def _listed(path: Path, given: list[Any]) -> Iterator[tuple[Path, str, Any]]:
    for position, entry in enumerate(given):
        if not isinstance(entry, dict):
            continue
        name = entry.get("name") or entry.get("group_name") or entry.get("model_name")
        if name is not None:
            yield (*path, position), str(name), entry
        else:
            for key, content in entry.items():
                yield (*path, position, key), key, content


def _group(draft: Draft, name: str, models: list[str], members: Members) -> None:
    draft.data.setdefault("groups", {})[name] = {"models": models}
    draft.origins["groups", name] = ("router_settings", "model_group", name)
    members[name] = models


def aliases(draft: Draft, given: dict[str, Any], members: Members, at: Path = ("router_settings", "model_group_alias")) -> None:
    """Further names for models and groups."""
    for name, content in given.items():
        path: Path = (*at, name)
        target = content.get("model") if isinstance(content, dict) else content
        known = names_of(members, draft) | set(given)
        if not isinstance(target, str) or target not in known or target == name:
            draft.say("manual", path, f"left out: there is no model called {shown(str(target))}{nearest(str(target), known)}")
        elif name in names_of(members, draft):
            draft.say("manual", path, "is the name of a model already; LiteLLM sends its requests to the alias, the gateway to the model")
        else:
            draft.put(("aliases", name), target, path)
            if isinstance(content, dict) and draft.flag((*path, "hidden"), content.get("hidden", False)):
                draft.data.setdefault("gateway", {}).setdefault("hidden", []).append(name)


def policies(draft: Draft, path: Path, given: list[Any], strategies: dict[str, str]) -> None:
    """Strategies of some names, each LiteLLM's name of a policy."""
    for position, entry in enumerate(given):
        here: Path = (*path, position)
        strategy = entry.get("routing_strategy") if isinstance(entry, dict) else None
        listed = entry.get("models") if isinstance(entry, dict) else None
        if str(strategy) not in strategies or not isinstance(listed, list):
            draft.say("manual", here, "needs models, and a routing_strategy of LiteLLM's; set models.<name>.policy or groups.<name>.policy")
            continue
        for number, name in enumerate(listed):
            where = (*here, "models", number)
            section = next((one for one in ("models", "groups") if name in draft.data.get(one, {})), None)
            if section is None:
                draft.say(
                    "manual", where, f"left out: there is no model called {shown(str(name))}{nearest(str(name), names_of({}, draft))}"
                )
            else:
                draft.data[section][name]["policy"] = strategies[str(strategy)]
                draft.say("exact", where, "", (section, name, "policy"))
        draft.say("exact", (*here, "routing_strategy"))
        if "group_name" in entry:
            draft.say("approximate", (*here, "group_name"), "is for people here; a group that clients can ask for is made under groups")
        if "routing_strategy_args" in entry:
            draft.say("approximate", (*here, "routing_strategy_args"), "how the policy weighs is set by policies.<name>.terms")


def _chains(value: Any, path: Path) -> Iterator[tuple[Path, str, list[Any]]]:
    entries = value if isinstance(value, list) else [value]
    for position, entry in enumerate(entries):
        where = (*path, position) if isinstance(value, list) else path
        for name, targets in entry.items() if isinstance(entry, dict) else ():
            yield (*where, name), name, targets if isinstance(targets, list) else [targets]


def fallbacks(draft: Draft, path: Path, value: Any, cause: str, members: Members) -> None:
    """Names that stand in; what leads nowhere, to itself or in a circle is left out, and said."""
    for where, name, targets in _chains(value, path):
        known = names_of(members, draft)
        if name == "*":
            default_fallbacks(draft, where, targets, members)
            continue
        if name not in known:
            draft.say("manual", where, f"left out: there is no model called {shown(name)}{nearest(name, known)}")
            continue
        for position, target in enumerate(targets):
            here: Path = (*where, position)
            wanted = str(target.get("model") if isinstance(target, dict) else target)
            if wrong := _wrong(draft, name, wanted, cause, known):
                draft.say("manual", here, wrong)
                continue
            _stand_in(draft, name, wanted, cause)
            more = isinstance(target, dict) and len(target) > 1
            why = "only its model is used: the request stays as the client sent it" if more else ""
            draft.say("approximate" if more else "exact", here, why, ("fallbacks", name, cause))


def _wrong(draft: Draft, name: str, target: str, cause: str, known: set[str]) -> str:
    chains = draft.data.get("fallbacks", {})
    if target not in known:
        return f"left out: there is no model called {shown(target)}{nearest(target, known)}"
    models = [name, *draft.data.get("groups", {}).get(name, {}).get("models", ())]
    if any(draft.data.get("models", {}).get(one, {}).get("mode") == "embedding" for one in models):
        return f"{name} makes embeddings, and another model's cannot stand in for them; left out"
    seen, waiting = set(), [target]
    while waiting:
        following = waiting.pop()
        if following == name:
            return f"goes in a circle: {target} leads back to {name}; left out"
        if following not in seen:
            seen.add(following)
            waiting += chains.get(following, {}).get(cause, ())
    return ""


def _stand_in(draft: Draft, name: str, target: str, cause: str) -> None:
    chain = draft.data.setdefault("fallbacks", {}).setdefault(name, {}).setdefault(cause, [])
    if target not in chain:
        chain.append(target)


def default_fallbacks(draft: Draft, path: Path, value: Any, members: Members) -> None:
    """Names that stand in wherever nothing else does."""
    targets = [str(one) for one in (value if isinstance(value, list) else [value])]
    for position, target in enumerate(targets):
        here = (*path, position) if isinstance(value, list) else path
        known = names_of(members, draft)
        if target not in known:
            draft.say("manual", here, f"left out: there is no model called {shown(target)}{nearest(target, known)}")
            continue
        own = {
            name for name, chain in draft.data.get("fallbacks", {}).items() if chain.get("down") and not set(chain["down"]) <= set(targets)
        }
        for name in list(members):
            if name not in own and not _wrong(draft, name, target, "down", known):
                _stand_in(draft, name, target, "down")
        draft.say(
            "exact", here, "stands in for every name without fallbacks of its own, but for those it would lead back to", ("fallbacks",)
        )
