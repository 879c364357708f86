"""Waits of a thrash: each has a name and a bound; the progress shows it, and a failure says what was seen last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError

_POLL_S = 0.3
Look = Callable[[], Awaitable[str | None]]
"""Looks at the rig, and returns what is lacking; None if the condition holds."""


@dataclass
class NamedWaits:
    """The waits of one thrash, one after the other; ``shown`` is the present one with its last observation, or empty."""

    shown: str = ""

    async def until(self, what: str, look: Look, within_s: float) -> None:
        """Wait for a condition; a role that does not answer is an observation.

        Args:
            what: the condition, for the progress and the error.
            look: looks whether it holds.
            within_s: the bound of the wait.

        Raises:
            RigError: ``ScenarioTimedOut`` with the condition and the last observation.
        """
        seen: str | None = "nothing"
        with SYSTEM_CLOCK.move_on_after(within_s):
            while True:
                try:
                    seen = await look()
                except RigError as error:
                    seen = f"{error.code}: {error.message}"
                self.shown = "" if seen is None else f"waits until {what}: {seen}"
                if seen is None:
                    return
                await SYSTEM_CLOCK.sleep(_POLL_S)
        raise RigError(Code.ScenarioTimedOut, f"{what}: not within {within_s:g} s; last seen: {seen}")
