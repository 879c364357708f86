"""The network of a simulation: each link between two roles is an object that passes calls of one contract.

A call behaves as one of :mod:`siterig.rpc.client`: it ends at the deadline of its method; an error of the other side arrives
as a new ``RigError``; a peer that is away or a broken connection is ``RoleUnavailable``, which is ``uncertain`` unless the
call was certainly not done.  Arguments and results are passed as they are, not by way of JSON.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, cast

import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.deadlines import deadline_s
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.simulation.rig.role import SimulatedRole
from siterig.scenarios.simulation.rig.runtime import OWNER

T = TypeVar("T")
LinkCut = Literal["refuse", "swallow"]
"""A link that is cut refuses connections, or swallows all that is sent (a black hole)."""
ACCOUNT_DEADLINE_S = 60.0
LOST_S = 20.0
"""After this time the caller of a call without a deadline learns that the other side does not know it."""


class LinkTrouble:
    """The faults in force on one link.

    Attributes:
        cut: how the link is cut; None if it is not.
        lose_request, lose_answer: the share of the calls that get lost before, or after, they had their effect.
        delay_s: the delay of each direction, in addition to the usual one.
    """

    def __init__(self) -> None:
        self.end()

    def end(self) -> None:
        """End all of them."""
        self.cut: LinkCut | None = None
        self.lose_request = 0.0
        self.lose_answer = 0.0
        self.delay_s = 0.0


class CallObserver:
    """Watches the calls of all links; an override may raise an assertion."""

    def before(self, link: SimulatedLink, method: str, arguments: dict[str, Any]) -> None:
        """React before a call takes effect at the server."""

    def after(self, link: SimulatedLink, method: str, arguments: dict[str, Any], result: Any) -> None:
        """React after a call took effect, before the client knows the result."""

    def ended(self, link: SimulatedLink, method: str, outcome: str) -> None:
        """React when the client has the result, or the code of an error."""

    def bug(self, where: str, error: BaseException) -> None:
        """React to an exception that no contract allows."""


class SimulatedNetwork:
    """All links, and their faults."""

    def __init__(self, draws: random.Random, clock: Clock, observer: CallObserver) -> None:
        self.draws = draws
        self.clock = clock
        self.observer = observer
        self.faults: dict[str, LinkTrouble] = {}
        self._in_transit: dict[str, dict[_Work, None]] = {}

    def link(self, client: SimulatedRole, server: SimulatedRole, protocol: type[T]) -> T:
        """Return an object that implements ``protocol`` by calls from one role to another."""
        return cast(T, SimulatedLink(self, client, server, protocol))

    def of(self, name: str) -> LinkTrouble:
        """Return the faults of a link, named CLIENT-SERVER."""
        return self.faults.setdefault(name, LinkTrouble())

    def cut(self, name: str, how: LinkCut) -> None:
        """LinkCut a link; with ``refuse`` the calls in transit break, too."""
        self.of(name).cut = how
        if how == "refuse":
            for work in self.in_transit(name):
                work.scope.cancel()
                work.done.set()

    def in_transit(self, name: str) -> dict[_Work, None]:
        """Return the calls of a link that are being worked on."""
        return self._in_transit.setdefault(name, {})

    def heal(self) -> None:
        """End all faults."""
        for trouble in self.faults.values():
            trouble.end()


class _Work:
    """The work of one call at the server."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.answered = False
        self.value: Any = None
        self.error: RigError | None = None


class SimulatedLink:
    """One link, for one contract."""

    def __init__(self, network: SimulatedNetwork, client: SimulatedRole, server: SimulatedRole, protocol: type) -> None:
        self.client = client
        self.server = server
        self.protocol = protocol
        self.name = f"{client.name}-{server.name}"
        self._network = network
        self._clock = client.clock
        self._calls = 0

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        contract = getattr(self.protocol, method)
        limit_s = deadline_s(contract)
        if self.server.name == "azurite":
            limit_s = ACCOUNT_DEADLINE_S

        async def call(*args: Any, **arguments: Any) -> Any:
            self._calls += 1
            outcome = "cancelled"
            try:
                result = await self._call(method, limit_s, args, arguments)
                outcome = "done"
            except RigError as error:
                outcome = str(error.code)
                raise
            finally:
                self._network.observer.ended(self, method, outcome)
            return result

        return call

    async def _call(self, method: str, limit_s: float, args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        network, draws = self._network, self._network.draws
        await self.client.reach_point()
        await self._delay()
        faults = network.of(self.name)
        await self.client.reach_point()
        if self.client.is_dead:  # a task that cannot be cancelled runs its last lines
            raise self._away("cannot be reached by a process that was killed", uncertain=False)
        if faults.cut == "refuse" or (faults.cut is None and not self.server.is_up):
            raise self._away("refuses connections", uncertain=False)
        if faults.cut == "swallow" or draws.random() < faults.lose_request:
            await self._never_answered(limit_s)
        work = _Work()
        loses_answer = draws.random() < faults.lose_answer

        async def serve() -> None:
            await self._serve(work, method, args, arguments)

        if not self.server.start_soon(serve):
            raise self._away("refuses connections", uncertain=False)
        await self._await(work, limit_s)
        if loses_answer or network.of(self.name).cut == "swallow":
            await self._never_answered(limit_s)
        if work.answered:
            await self._delay()
        await self.client.reach_point()
        if not work.answered:
            raise self._away("did not answer", uncertain=True)
        if work.error is not None:
            raise self._copied(work.error)
        return work.value

    async def _serve(self, work: _Work, method: str, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        OWNER.set(self.server)
        observer = self._network.observer
        named = arguments | {f"arg{number}": value for number, value in enumerate(args)}
        try:
            with work.scope:
                await self.server.reach_point()
                observer.before(self, method, named)
                try:
                    work.value = await getattr(self.server.services[self.protocol], method)(*args, **arguments)
                except RigError as error:
                    work.error = error
                observer.after(self, method, named, work.error or work.value)
                await self.server.reach_point()
                work.answered = True
        except Exception as error:
            observer.bug(f"{self.name} {method}", error)
        finally:
            work.done.set()

    async def _await(self, work: _Work, limit_s: float) -> None:
        """Wait for the work; if the caller goes away, the deadline passes or the link breaks, the work is cancelled."""
        in_transit = self._network.in_transit(self.name)
        in_transit[work] = None
        try:
            with self._clock.move_on_after(limit_s):
                await work.done.wait()
        finally:
            del in_transit[work]
            if not work.done.is_set():
                work.scope.cancel()

    async def _never_answered(self, limit_s: float) -> None:
        """Wait as a caller does whose request or answer is lost, and raise."""
        if math.isfinite(limit_s):
            await self._clock.sleep(limit_s)
        else:
            place = f"call {self.name} {self._calls}"
            try:
                while True:
                    await self._clock.sleep(LOST_S)
                    if self._network.of(self.name).cut is None:
                        break
                    self.client.waits.set(place, Code.RoleUnavailable, f"the {self.server.name} does not answer")
            finally:
                self.client.waits.clear(place)
        raise self._away("did not answer in time", uncertain=True)

    async def _delay(self) -> None:
        """Wait as long as a message is on its way in one direction: mostly for a moment in which other tasks run."""
        draws = self._network.draws
        usual = draws.choice((0.0, 0.0, 0.0, 0.0, 0.001, 0.01)) if draws.random() < 0.98 else draws.uniform(0.1, 1.5)
        delay_s = usual + self._network.of(self.name).delay_s
        if delay_s:
            await self._clock.sleep(delay_s)
        else:
            await trio.lowlevel.checkpoint()

    def _away(self, what: str, *, uncertain: bool) -> RigError:
        name = self.server.name
        message = f"the {name} {what} over the link {self.name}"
        if name == "azurite":
            return RigError(Code.CacheUnreachable, message, recoverable=True)
        return RigError(Code.RoleUnavailable, message, recoverable=True, role=name, uncertain=uncertain)

    @staticmethod
    def _copied(error: RigError) -> RigError:
        return RigError(
            error.code,
            error.message,
            recoverable=error.recoverable,
            role=error.role,
            uncertain=error.uncertain,
            retry_after_s=error.retry_after_s,
        )
