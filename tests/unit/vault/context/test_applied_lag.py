"""The lag of the recovery side, whose reports and those of the site come in any order."""

from __future__ import annotations

from siterig.azure_emu.vault.context.applied_lag import AppliedLag
from siterig.blockfs.core.clock_reading import SECOND_NS
from tests.support.clocks import SettableClock


def test_a_state_that_is_known_as_applied_first_does_not_wait() -> None:
    clock = SettableClock()
    lag = AppliedLag(clock)
    assert lag.sent("web01", 10)
    lag.applied("web01", 20, moved=True)
    assert not lag.sent("web01", 20)
    clock.advance_ns(100 * SECOND_NS)
    assert (lag.unapplied_s("web01"), lag.stalled_s("web01")) == (0, 0)
    assert lag.sent("web01", 30)
    clock.advance_ns(5 * SECOND_NS)
    assert (lag.unapplied_s("web01"), lag.stalled_s("web01")) == (5, 5)
