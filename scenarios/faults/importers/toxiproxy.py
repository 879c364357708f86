"""Fault files of Toxiproxy: its proxies with their toxics, in JSON.

The file is a configuration (a list of proxies) or the answer of ``GET /proxies`` (an object of proxies by name).  A proxy
becomes the link of the same name; where it listens and leads to is left out.

Source: README.md and ``toxics/*.go`` of Shopify/toxiproxy, read in November 2026.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.importers.imported import (
    ImportedRules,
    check_keys,
    literal,
    made_rule,
    not_imported,
    rule_set,
    text,
    whole,
)
from siterig.scenarios.faults.rules import FaultRule

_PROXY = ("name", "listen", "upstream", "enabled", "toxics", "logger")
_TOXIC = ("name", "type", "stream", "toxicity", "attributes")
_STREAMS = ("upstream", "downstream")
_PER_CONNECTION = "toxicity below 1 chooses connections, and a rule chooses single messages: this type cannot be imported so"


def import_toxiproxy(name: str, source: str) -> ImportedRules:
    """Return the rules of a Toxiproxy file.

    Args:
        name: names the file in messages.
        source: its text.
    Raises:
        RigError: ``FaultNotImported``.
    """
    try:
        data = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise not_imported(name, f"this is no JSON: {error}") from None
    rules: list[tuple[str, FaultRule]] = []
    notes: list[str] = []
    for place, proxy in _proxies(name, data):
        check_keys(place, proxy, _PROXY, ("name",))
        link = text(place, proxy, "name")
        enabled = proxy.get("enabled", True)
        if not isinstance(enabled, bool):
            raise not_imported(f"{place}.enabled", f"{enabled!r} is not allowed: write true or false")
        if not enabled:
            where = {"layer": "link", "link": literal(link)}
            rules.append(
                (place, made_rule(place, {"where": where, "what": {"connection": "refuse"}, "name": f"{link} down"}))
            )
        toxics = proxy.get("toxics", [])
        if not isinstance(toxics, list) or not all(isinstance(each, dict) for each in toxics):
            raise not_imported(f"{place}.toxics", "is not a list of objects")
        for number, toxic in enumerate(toxics, 1):
            at = f"{place}.toxics[{number}]"
            rules += [(at, rule) for rule in _rule(at, link, _lowered(toxic), notes)]
    if not rules:
        raise not_imported(name, "there is no toxic, and no proxy that is not enabled")
    addresses = "addresses of proxies were left out: a rule names the link, and a link is named CLIENT-SERVER"
    return ImportedRules(rule_set(name, rules), (addresses, *notes))


def _lowered(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with keys in lower case: Toxiproxy does not distinguish them, and its own example has ``Name``."""
    return {key.lower(): value for key, value in table.items()}


def _proxies(name: str, data: object) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(data, dict) and not isinstance(_lowered(data).get("name"), str):
        items = [(f"{name}: {key}", value) for key, value in data.items()]
    else:
        items = [
            (f"{name}: proxy[{number}]", value) for number, value in enumerate(data if isinstance(data, list) else [data], 1)
        ]
    found: list[tuple[str, Mapping[str, Any]]] = []
    for place, proxy in items:
        if not isinstance(proxy, dict):
            raise not_imported(place, f"{str(proxy)[:60]!r} is no proxy: write an object with name and toxics")
        found.append((place, _lowered(proxy)))
    return found


def _rule(place: str, link: str, toxic: Mapping[str, Any], notes: list[str]) -> list[FaultRule]:
    check_keys(place, toxic, _TOXIC, ("type",))
    kind = text(place, toxic, "type")
    if kind == "noop":
        notes.append(f"the toxic {toxic.get('name', kind)!r} of {link!r} does nothing, and was left out")
        return []
    if kind == "slicer":
        raise not_imported(f"{place}.type", "'slicer' is not possible: no rule cuts messages into smaller pieces")
    if kind not in _TOXICS:
        raise not_imported(f"{place}.type", f"{kind!r} is unknown{hint(kind, _TOXICS)}; allowed: {', '.join(_TOXICS)}")
    stream = toxic.get("stream", "downstream")
    if stream not in _STREAMS:
        raise not_imported(f"{place}.stream", f"{stream!r} is not allowed: write upstream or downstream")
    attributes = toxic.get("attributes", {})
    if not isinstance(attributes, dict):
        raise not_imported(f"{place}.attributes", "is no object")
    known, make = _TOXICS[kind]
    check_keys(f"{place}.attributes", attributes, known)
    what = make(f"{place}.attributes", attributes)
    where: dict[str, Any] = {"layer": "link", "link": literal(link), "stream": stream}
    when: dict[str, Any] = {}
    toxicity = toxic.get("toxicity", 1.0)
    if isinstance(toxicity, bool) or not isinstance(toxicity, int | float) or not 0 < toxicity <= 1:
        raise not_imported(f"{place}.toxicity", f"{toxicity!r} is not allowed: write a number above 0, at most 1")
    if toxicity < 1:
        if kind in ("latency", "bandwidth", "slow_close"):
            raise not_imported(f"{place}.toxicity", f"{toxicity!r}: {_PER_CONNECTION}")
        where["op"], when["probability"] = "connect", float(toxicity)
    name = f"{link} {toxic.get('name') or f'{kind}_{stream}'}"
    return [made_rule(place, {"name": name, "where": where, "when": when, "what": what})]


def _latency(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    what = {"delay": f"{whole(place, attributes, 'latency', 0)}ms"}
    jitter = whole(place, attributes, "jitter", 0)
    return what | ({"jitter": f"{jitter}ms"} if jitter else {})


def _bandwidth(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"rate": f"{whole(place, attributes, 'rate', 0, least=1)}KB/s"}


def _slow_close(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"connection": "slow-close", "close_after": f"{whole(place, attributes, 'delay', 0)}ms"}


def _timeout(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    timeout = whole(place, attributes, "timeout", 0)
    return {"connection": "black-hole"} | ({"close_after": f"{timeout}ms"} if timeout else {})


def _reset_peer(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    timeout = whole(place, attributes, "timeout", 0)
    return {"connection": "reset"} | ({"close_after": f"{timeout}ms"} if timeout else {})


def _limit_data(place: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"cut_after": whole(place, attributes, "bytes", 0)}


_TOXICS: dict[str, tuple[tuple[str, ...], Callable[[str, Mapping[str, Any]], dict[str, Any]]]] = {
    "latency": (("latency", "jitter"), _latency),
    "bandwidth": (("rate",), _bandwidth),
    "slow_close": (("delay",), _slow_close),
    "timeout": (("timeout",), _timeout),
    "reset_peer": (("timeout",), _reset_peer),
    "limit_data": (("bytes",), _limit_data),
}
