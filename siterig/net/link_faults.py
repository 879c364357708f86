"""Faults of a link: what happens to one operation, the contract of the rules that decide it, and the control of a proxy.

The operations of a connection are *connect*, *send* and *close*.  A send is everything that one side sends until the other
side answers: the proxy knows no protocol, but a request and its answer are one send each, however many packets they need.
So the same calls are the same operations.  A send that is under way when a rule begins counts again from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import trio

from siterig.net.pacing import Pacer

LinkSide = Literal["client", "server"]
LinkOperation = Literal["connect", "send", "close"]
LinkStream = Literal["upstream", "downstream"]
LinkEnding = Literal["reset", "refuse", "black-hole", "half-open"]


class FaultLife:
    """The life of a rule: its faults hold nothing any more when it is over."""

    def __init__(self) -> None:
        """Begin a life that is not over."""
        self.ended = trio.Event()
        """Set when the rule is over."""

    @property
    def is_over(self) -> bool:
        """True if the rule is over."""
        return self.ended.is_set()


@dataclass(slots=True, kw_only=True, eq=False)
class LinkFault:
    """A fault that one operation meets.

    Attributes:
        rule: the name of the rule.
        life: the life of the rule.
        record: gets each effect in words, before a side of the link can notice it.
        stream: the direction that the rule is for; None for both.
        delay_s: the time before the operation, or its other fault, takes effect.
        pacer: keeps the bytes of the send at a rate; connections share it.
        ending: the end of the connection.  ``black-hole``: nothing arrives until the rule is over; nothing is lost, as with
            TCP.  ``half-open``: the side that would get the bytes sees the end, the other one does not learn of it.
        is_late: the ending comes after the operation has taken effect: of a send, when the other side answers.
        close_after_s: the time until a reset; a black hole without it lasts as long as the rule.
        cut_after_bytes: the connection is closed after so many bytes from here on.
        confirm: called when that is the case; the connection lives on if it returns False.
    """

    rule: str
    life: FaultLife
    record: Callable[[str], object]
    stream: LinkStream | None = None
    delay_s: float = 0.0
    pacer: Pacer | None = None
    ending: LinkEnding | None = None
    is_late: bool = False
    close_after_s: float | None = None
    cut_after_bytes: int | None = None
    confirm: Callable[[], bool] = lambda: True

    def is_for(self, stream: LinkStream) -> bool:
        """Return True if the fault concerns a direction, and its rule is not over."""
        return not self.life.is_over and self.stream in (None, stream)


class LinkFaults(Protocol):
    """The rules that choose the faults of one link."""

    def is_watching(self) -> bool:
        """Return True if any rule counts or changes operations of the link now; otherwise bytes pass unseen."""

    def decide(self, operation: LinkOperation, stream: LinkStream) -> list[LinkFault]:
        """Return the faults that an operation meets, in the order of their rules.  Called once for each operation."""


class NoLinkFaults(LinkFaults):
    """A link without any rule."""

    def is_watching(self) -> bool:
        return False

    def decide(self, operation: LinkOperation, stream: LinkStream) -> list[LinkFault]:
        return []


@dataclass(slots=True)
class LinkCounters:
    """Figures of a link since its proxy began.

    ``waiting_bytes`` are those that faults hold now: a side has sent them, and they have not arrived.  Bytes that pass
    unseen are counted when that ends.
    """

    connections: int = 0
    open: int = 0
    refused: int = 0
    resets: int = 0
    cuts: int = 0
    half_opened: int = 0
    waiting_bytes: int = 0
    upstream_bytes: int = 0
    downstream_bytes: int = 0


class LinkControl:
    """The faults of one link, for all its connections.  Its methods are called on the trio thread of the proxy."""

    def __init__(self, faults: LinkFaults | None = None) -> None:
        """Begin; without rules all bytes pass unseen."""
        self.faults: LinkFaults = faults or NoLinkFaults()
        self.counters = LinkCounters()
        self.changes = 0
        """The number of changes of the rules."""
        self._changed = trio.Event()
        self._threads: dict[Callable[[], None], trio.Event] = {}

    @property
    def changed(self) -> trio.Event:
        """An event that is set by the next change."""
        return self._changed

    def note_change(self) -> list[trio.Event]:
        """Let connections see that rules have begun or ended; return the events after which all of them do."""
        self.changes += 1
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        threads = list(self._threads.items())
        for wake, _ in threads:
            wake()
        return [has_ended for _, has_ended in threads]

    async def apply_change(self) -> None:
        """Put a change of the rules in force; it is when the call returns, also in connections that are open."""
        for has_ended in self.note_change():
            await has_ended.wait()

    def add_thread(self, wake: Callable[[], None]) -> None:
        """Register a thread that moves bytes unseen, with the function that ends it."""
        self._threads[wake] = trio.Event()

    def remove_thread(self, wake: Callable[[], None]) -> None:
        """Forget a thread, which has ended."""
        self._threads.pop(wake).set()
