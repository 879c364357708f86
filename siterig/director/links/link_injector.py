"""The injector of the layer ``link``: rules become faults of the connections in the proxies of the links."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.documents.nearest import hint
from siterig.director.injectors import LayerInjector, not_possible
from siterig.director.links.entries import LinkEntries
from siterig.director.links.rule_lives import RuleLife, RuleLives
from siterig.net.link_faults import LinkEnding, LinkFault, LinkFaults, LinkOperation, LinkStream
from siterig.rpc.directory import LINKS
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import FaultRule, mark_words
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision, FaultSchedule

_ENDINGS: dict[str, LinkEnding] = {
    "reset": "reset",
    "refuse": "refuse",
    "black-hole": "black-hole",
    "half-open": "half-open",
}
"""Faults of a connection that end it; a slow close is a delay of the close."""


def matching_links(rule: FaultRule, links: Sequence[str] = LINKS) -> list[str]:
    """Return the links that a rule is for, by its patterns of links and clients.

    Raises:
        RigError: ``FaultNotPossible`` if there is none.
    """
    link, role = rule.where.link or "*", rule.where.role or "*"
    found = [name for name in links if fnmatchcase(name, link) and fnmatchcase(name.partition("-")[0], role)]
    if found:
        return found
    clients = tuple(dict.fromkeys(name.partition("-")[0] for name in links))
    if rule.where.role is not None and not any(fnmatchcase(client, role) for client in clients):
        raise not_possible(
            rule, f"where.role: {role!r} is no client{hint(role, clients)}; allowed: {', '.join(clients)}, or a pattern"
        )
    of_role = f" of the client {role}" if rule.where.role is not None else ""
    text = f"where.link: there is no link {link!r}{of_role}{hint(link, links)}; allowed: {', '.join(links)}, or a pattern"
    raise not_possible(rule, text)


class LinkInjector(LayerInjector):
    """Puts the proxies of links into their paths, and decides about each of their operations."""

    layers: tuple[LayerName, ...] = ("link",)

    def __init__(self, schedule: FaultSchedule, entries: LinkEntries, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Begin without rules.

        Args:
            schedule: decides about operations.
            entries: the proxies.
            clock: measures rates.
        """
        self.schedule = schedule
        self.clock = clock
        self.lives = RuleLives(self.layers, clock)
        self._entries = entries
        self._armed: dict[str, list[ArmedRule]] = {}
        for link in LINKS:
            entries.control(link).faults = LinkRules(self, link)
        schedule.subscribe(self.lives)

    def rules_of(self, link: str) -> list[ArmedRule]:
        """Return the rules that are armed on a link."""
        return self._armed.get(link, [])

    async def check(self, rule: FaultRule) -> None:
        matching_links(rule)

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        for armed in rules:
            self.lives.continue_with(armed)
            for link in matching_links(armed.rule):
                await self._entries.enter(link, armed.label)
                self._armed.setdefault(link, []).append(armed)
            await self._apply(armed)

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        for armed in rules:
            self.lives.end(armed)
            for link in matching_links(armed.rule):
                self._armed[link] = [other for other in self.rules_of(link) if other is not armed]
            await self._apply(armed)
            await self._entries.leave(armed.label)

    async def run(self) -> None:
        await self._entries.run()

    async def window_opened(self, armed: ArmedRule) -> None:
        await self._apply(armed)

    async def window_closed(self, armed: ArmedRule) -> None:
        await self._apply(armed)

    async def _apply(self, armed: ArmedRule) -> None:
        """Let the connections of a rule's links see that it has begun or ended."""
        for link in matching_links(armed.rule):
            await self._entries.control(link).apply_change()


class LinkRules(LinkFaults):
    """The rules of one link."""

    def __init__(self, injector: LinkInjector, link: str) -> None:
        """Begin; ``link`` is the name of the link."""
        self._injector = injector
        self._place = {"link": link, "role": link.partition("-")[0]}

    def is_watching(self) -> bool:
        rules = self._injector.rules_of(self._place["link"])
        return any(self._injector.lives.of(armed.label) is not None for armed in rules)

    def decide(self, operation: LinkOperation, stream: LinkStream) -> list[LinkFault]:
        found = self._injector.schedule.decide(FaultOperation("link", operation, self._place, stream=stream))
        lives = self._injector.lives
        return [self._fault(decision, life) for decision in found if (life := lives.of(decision.label)) is not None]

    def _fault(self, decision: FaultDecision, life: RuleLife) -> LinkFault:
        what, label = decision.rule.what, decision.label
        if what.keys() == ("mark",):
            self._injector.schedule.record(decision, mark_words(decision.rule))
        delay_ns = decision.delay_ns() + ((what.close_after or 0) if what.connection == "slow-close" else 0)
        stream = decision.rule.where.stream
        return LinkFault(
            rule=label,
            life=life,
            record=partial(self._injector.schedule.record, decision),
            stream=None if stream in (None, "both") else stream,  # type: ignore[arg-type]
            delay_s=delay_ns / 1e9,
            pacer=life.pacer,
            ending=None if what.connection is None else _ENDINGS.get(what.connection),
            is_late=decision.rule.when.timing == "after",
            close_after_s=None if what.close_after is None else what.close_after / 1e9,
            cut_after_bytes=what.cut_after,
            confirm=partial(self._injector.schedule.confirm, decision),
        )
