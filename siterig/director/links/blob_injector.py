"""The injector of the layer ``blob``: rules become actions of the proxies in front of the storage account.

Each client of the account has a proxy of its own, in its link, so a rule can name the client (``role``).

**Faults of the account.**  ``container-deleted`` deletes containers of Azurite; their blobs are lost, and stay so when the
rule is removed.  ``account-deleted`` does the same, and every connection is reset as long as the rule is in force.
``key-rotated`` answers every request as the service answers one that is signed with an old key: Azurite takes its keys at
its start only, so they are not really changed.  Both heal when the rule is removed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import structlog

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.director.injectors import LayerInjector, not_possible
from siterig.director.links.entries import LinkEntries
from siterig.director.links.link_injector import matching_links
from siterig.director.links.rule_lives import RuleLife, RuleLives
from siterig.net.blob_faults import (
    STORAGE_ERRORS,
    BlobAction,
    BlobFaults,
    BlobInjection,
    BodyDamage,
    DistortTransfer,
    HoldTransfer,
    LoseRequest,
    RefuseRequest,
    WithholdAnswer,
    key_rotated,
)
from siterig.net.blob_requests import BlobRequest
from siterig.net.pacing import Pacer
from siterig.rpc.directory import AZURITE, LINKS
from siterig.scenarios.faults.catalog import BODY_SENT, LayerName
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import FaultRule, mark_words
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision, FaultSchedule
from siterig.scenarios.faults.schema import HttpError

BLOB_LINKS = tuple(link for link in LINKS if link.endswith(f"-{AZURITE}"))
"""The links to the storage account."""
CONNECTION_FAULTS = ("reset", "refuse", "black-hole")
"""The faults of a connection that concern one request; the others are faults of links."""
_LASTING = ("key-rotated", "account-deleted")
"""The faults of an account that last as long as their rule."""
DeleteContainers = Callable[[str], Awaitable[list[str]]]
"""Deletes the containers whose names match a pattern, and returns the names."""
_MetRule = tuple[FaultDecision, RuleLife]
"""A rule that a request has met, and its life."""
_log = structlog.get_logger("faults")


class BlobInjector(LayerInjector):
    """Puts the proxies of the account into the links of its clients, and decides about each request."""

    layers: tuple[LayerName, ...] = ("blob",)

    def __init__(
        self,
        schedule: FaultSchedule,
        entries: LinkEntries,
        delete_containers: DeleteContainers,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Begin without rules.

        Args:
            schedule: decides about requests.
            entries: the proxies of the links.
            delete_containers: deletes containers of the account.
            clock: measures delays and rates.
        """
        self.schedule = schedule
        self.clock = clock
        self.lives = RuleLives(self.layers, clock)
        self._entries = entries
        self._delete_containers = delete_containers
        self._account_faults: dict[str, FaultRule] = {}
        schedule.subscribe(self.lives)

    async def check(self, rule: FaultRule) -> None:
        matching_links(rule, BLOB_LINKS)
        connection = rule.what.connection
        if connection is not None and connection not in CONNECTION_FAULTS:
            text = f"what.connection: {connection!r} is a fault of the layer link, like link agent-{AZURITE}"
            raise not_possible(rule, f"{text}; allowed on blob: {', '.join(CONNECTION_FAULTS)}")

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        for armed in rules:
            self.lives.continue_with(armed)
            for link in matching_links(armed.rule, BLOB_LINKS):
                await self._entries.enter(link, armed.label)

    async def resume(self, rules: Sequence[ArmedRule]) -> None:
        await self.arm(rules)
        for armed in rules:  # the account is still in the state that the former director gave it; nothing is deleted twice
            if armed.fired and armed.window.is_open and armed.rule.what.account in _LASTING:
                self._account_faults[armed.label] = armed.rule

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        for armed in rules:
            self._end(armed)
            await self._entries.leave(armed.label)

    async def window_closed(self, armed: ArmedRule) -> None:
        self._end(armed)

    def _end(self, armed: ArmedRule) -> None:
        self._account_faults.pop(armed.label, None)
        self.lives.end(armed)

    async def act(self, decision: FaultDecision) -> str:
        return await self.change_account(decision)

    async def change_account(self, decision: FaultDecision) -> str:
        """Carry out a fault of the account, and return it in words."""
        fault, where = decision.rule.what.account, decision.rule.where
        if fault is None:
            raise not_possible(decision.rule, "it needs an operation; allowed without one: account")
        if fault in _LASTING:
            self._account_faults[decision.label] = decision.rule
        if fault == "key-rotated":
            return "requests are answered 403 AuthenticationFailed from now on"
        try:
            deleted = await self._delete_containers((where.blob or "*").partition("/")[0])
        except RigError:
            self._account_faults.pop(decision.label, None)
            raise
        done = f"deleted the containers {', '.join(deleted)}" if deleted else "there was no container to delete"
        return f"{done}; connections are reset from now on" if fault == "account-deleted" else done

    def account_fault(self, role: str, request: BlobRequest) -> BlobAction | None:
        """Return the answer to a request to an account whose key was rotated, or that was deleted."""
        for label, rule in self._account_faults.items():
            if fnmatchcase(role, rule.where.role or "*") and fnmatchcase(request.path, rule.where.blob or "*"):
                return _denial(rule, label)
        return None


def _denial(rule: FaultRule, label: str) -> BlobAction:
    if rule.what.account == "key-rotated":
        return key_rotated(rule=label)
    return WithholdAnswer(is_reset=True, rule=label)


class BlobRules(BlobFaults):
    """The rules for the requests of one client."""

    def __init__(
        self,
        injector: BlobInjector,
        role: str,
        shown_name: Callable[[str, str], tuple[str, str]] = lambda container, blob: (container, blob),
    ) -> None:
        """Begin without a request.

        Args:
            injector: has the rules.
            role: the client.
            shown_name: gets container and blob of a request, and returns them as rules name them.
        """
        self._injector = injector
        self._role = role
        self._shown_name = shown_name

    def decide(self, request: BlobRequest) -> BlobAction | None:
        injector = self._injector
        container, blob = self._shown_name(request.container, request.blob)
        request = replace(request, container=container, blob=blob)
        place = {"blob": request.path, "role": self._role}
        found = injector.schedule.decide(FaultOperation("blob", request.operation, place, length=request.body_bytes or 0))
        met = [(decision, life) for decision in found if (life := injector.lives.of(decision.label)) is not None]
        if not met and injector.account_fault(self._role, request) is None:
            return None
        return replace(self._action(request, met), before=self._before(request, met))

    def _action(self, request: BlobRequest, met: Sequence[_MetRule]) -> BlobAction:
        """Return the action of the rules that a request has met, and that are not over."""
        living = [(decision, life) for decision, life in met if not life.is_over]
        action = self._injector.account_fault(self._role, request) or _ending(living) or _distorted(living)
        return replace(action, context={decision.label: decision for decision, _ in met})

    def injected(self, injection: BlobInjection) -> None:
        context = injection.action.context
        decision = context.get(injection.rule) if isinstance(context, dict) else None
        if decision is not None and injection.is_nothing:
            self._injector.schedule.take_back(decision)
        elif decision is not None:
            self._injector.schedule.record(decision, injection.effect)

    def _before(self, request: BlobRequest, met: Sequence[_MetRule]) -> Callable[[], Awaitable[BlobAction]]:
        """Return the work before a request: the delays, and a fault of the account; it returns the action that follows."""
        delays = [(*each, seconds) for each in met if (seconds := each[0].delay_ns() / 1e9)]
        ending = self._action(request, met)
        if isinstance(ending, WithholdAnswer):
            delays += [
                (decision, life, after / 1e9)
                for decision, life in met
                if decision.label == ending.rule and (after := decision.rule.what.close_after)
            ]

        async def work() -> BlobAction:
            for decision, life, seconds in delays:
                self._injector.schedule.record(decision, f"delayed by {round(seconds, 6):g} s")
                with self._injector.clock.move_on_after(seconds):
                    await life.ended.wait()
            possible = list(met)
            for decision, life in met:
                if decision.rule.what.keys() == ("mark",):
                    self._injector.schedule.record(decision, mark_words(decision.rule))
                elif decision.rule.what.account is None or life.is_over:
                    continue
                elif not await self._can_change_account(decision):
                    possible.remove((decision, life))
            return self._action(request, possible)

        return work

    async def _can_change_account(self, decision: FaultDecision) -> bool:
        """Carry out a fault of the account at a request; return False if that fails: then the rule has not fired."""
        schedule = self._injector.schedule
        try:
            schedule.record(decision, await self._injector.change_account(decision))
        except RigError as error:
            schedule.take_back(decision)
            _log.error("fault_failed", rule=decision.label, code=error.code, reason=error.message)
            return False
        return True


def _ending(met: Sequence[_MetRule]) -> BlobAction | None:
    """Return the action of the first rule that fails its request."""
    for decision, life in met:
        what, is_late, label = decision.rule.what, decision.rule.when.timing == "after", decision.label
        if isinstance(what.error, HttpError):
            code = what.error.error_code()
            return RefuseRequest(
                status=what.error.status,
                code=code,
                message=STORAGE_ERRORS[code][1] if code in STORAGE_ERRORS else "",
                retry_after_s=what.error.retry_after,
                is_carried_out=is_late,
                rule=label,
            )
        if what.connection == "black-hole":
            return HoldTransfer(
                released=life.ended.wait,
                is_carried_out=is_late,
                close_after_s=None if what.close_after is None else what.close_after / 1e9,
                rule=label,
            )
        if what.connection is not None:
            return WithholdAnswer(is_carried_out=is_late, is_reset=True, rule=label)
        if what.lost:
            return LoseRequest(rule=label)
        if what.account in _LASTING:
            return _denial(decision.rule, label)
    return None


def _distorted(met: Sequence[_MetRule]) -> DistortTransfer:
    """Return the transfer with the changes and rates of all rules, in their order."""
    pacers: list[tuple[str, Pacer]] = []
    request: list[BodyDamage] = []
    answer: list[BodyDamage] = []
    for decision, life in met:
        what, label = decision.rule.what, decision.label
        if life.pacer is not None:
            pacers.append((label, life.pacer))
        if what.flip is not None:
            damage = BodyDamage(bits_flipped=what.flip.bits, choose=decision.flipped_bits, rule=label)
            (answer if decision.operation.op == "GetBlob" else request).append(damage)
        if what.truncate is not None:
            damage = BodyDamage(bytes_kept=what.truncate, rule=label)
            (request if decision.operation.op in BODY_SENT else answer).append(damage)
    return DistortTransfer(pacers=tuple(pacers), request=tuple(request), answer=tuple(answer))
