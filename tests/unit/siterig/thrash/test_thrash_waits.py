"""The waits of a thrash: one that does not end is reported by its name, with the last observation."""

from __future__ import annotations

import pytest
import trio.testing

from siterig.blockfs.core.errors import Code, RigError
from siterig.thrash.waits import NamedWaits


async def test_a_wait_returns_when_its_condition_holds(autojump_clock: trio.testing.MockClock) -> None:
    seen = iter(["one is missing", "one is missing", None])

    async def look() -> str | None:
        return next(seen)

    await NamedWaits().until("all are there", look, 60)
    assert next(seen, "used") == "used"


async def test_a_wait_past_its_bound_names_condition_and_observation(autojump_clock: trio.testing.MockClock) -> None:
    async def look() -> str | None:
        raise RigError(Code.RoleHung, "role vault does not answer")

    with pytest.raises(RigError, match=r"all are there: not within 60 s; last seen: RoleHung: role vault") as caught:
        await NamedWaits().until("all are there", look, 60)
    assert caught.value.code is Code.ScenarioTimedOut
