"""Conditions of a link, and the control by which they change while connections are open."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import trio

from siterig.blockfs.core.errors import Code, RigError

Side = Literal["client", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConditions:
    """Conditions of the bytes in one direction; the default passes everything at once.

    Attributes:
        latency_s: time that each piece needs.
        jitter_s: the latency of a piece is up to so much higher or lower; the order stays.
        rate_bytes_s: limit in bytes a second; None for no limit.
        is_held: a black hole: nothing arrives, not even the end of the stream.  As with TCP, what was sent meanwhile arrives
            when the black hole ends.
        cut_after_bytes: the connection ends after so many bytes, counted from this condition on, or from the beginning of
            a newer connection; None for no end.
        close_delay_s: the end of the stream arrives so much later.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    rate_bytes_s: float | None = None
    is_held: bool = False
    cut_after_bytes: int | None = None
    close_delay_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RigError: ``BadRequest``.
        """
        for name in ("latency_s", "jitter_s", "close_delay_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RigError(Code.BadRequest, f"{name} of a link is {value}; allowed: 0 or more seconds")
        if self.rate_bytes_s is not None and not (math.isfinite(self.rate_bytes_s) and self.rate_bytes_s > 0):
            raise RigError(Code.BadRequest, f"rate_bytes_s of a link is {self.rate_bytes_s}; allowed: more than 0")
        if self.cut_after_bytes is not None and self.cut_after_bytes < 0:
            raise RigError(Code.BadRequest, f"cut_after_bytes of a link is {self.cut_after_bytes}; allowed: 0 or more")

    @property
    def is_plain(self) -> bool:
        """True if the bytes need no attention."""
        return self == PLAIN


PLAIN = FlowConditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConditions:
    """Conditions of a link, for connections that are open and for new ones.

    Attributes:
        upstream: from the client to the server.
        downstream: from the server to the client.
        is_refused: new connections are reset.
        half_open: this side sees the end of its connections; the other side sees nothing, and gets no answer.
        cut_resets: a connection that is cut is reset; otherwise both sides see its end.
    """

    upstream: FlowConditions = PLAIN
    downstream: FlowConditions = PLAIN
    is_refused: bool = False
    half_open: Side | None = None
    cut_resets: bool = False


@dataclass(slots=True)
class LinkCounters:
    """Figures of a link since its proxy began.

    ``waiting_bytes`` are those that conditions hold now: a side has sent them, and they have not arrived.  Bytes that pass
    without conditions are counted when that ends.
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
    """The conditions of one link.  Its methods are called on the trio thread of the proxy."""

    def __init__(self, seed: int = 0, *, note: Callable[[str], None] = lambda _effect: None) -> None:
        """Begin without any condition.

        Args:
            seed: chooses the jitter.
            note: gets each effect on a connection in words.
        """
        self.seed = seed
        self.note = note
        self.counters = LinkCounters()
        self._conditions = LinkConditions()
        self._changed = trio.Event()
        self._threads: dict[Callable[[], None], trio.Event] = {}
        self._connections: dict[int, Callable[[], None]] = {}

    @property
    def conditions(self) -> LinkConditions:
        """The conditions in force."""
        return self._conditions

    @property
    def changed(self) -> trio.Event:
        """An event that is set by the next change."""
        return self._changed

    async def set(self, conditions: LinkConditions) -> None:
        """Put conditions in force; they are when the call returns, also in connections that are open."""
        self._conditions = conditions
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        threads = list(self._threads.items())
        for wake, _ in threads:
            wake()
        for _, has_ended in threads:
            await has_ended.wait()

    async def clear(self) -> None:
        """Remove all conditions."""
        await self.set(LinkConditions())

    def reset_connections(self) -> int:
        """Reset the connections that are open; return their number."""
        resets = list(self._connections.values())
        for reset in resets:
            reset()
        self.counters.resets += len(resets)
        if resets:
            self.note(f"{len(resets)} connections are reset")
        return len(resets)

    def add_connection(self, number: int, reset: Callable[[], None]) -> None:
        """Register an open connection with the function that resets it."""
        self._connections[number] = reset

    def remove_connection(self, number: int) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(number, None)

    def add_thread(self, wake: Callable[[], None]) -> None:
        """Register a thread that moves bytes without conditions, with the function that ends it."""
        self._threads[wake] = trio.Event()

    def remove_thread(self, wake: Callable[[], None]) -> None:
        """Forget a thread, which has ended."""
        self._threads.pop(wake).set()
