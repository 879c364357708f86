"""The vault passes the bandwidth limit to the site's host, which keeps it, and records each change."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import running

LIMIT = BandwidthLimit(work_days=["mon"], work_begin_s=0, work_end_s=3600, work_bytes_s=1 << 20, other_bytes_s=None)


async def test_a_limit_is_set_shown_and_removed(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        assert await vault.bandwidth.bandwidth() is None
        await vault.bandwidth.set_bandwidth(limit=LIMIT)
        assert await vault.bandwidth.bandwidth() == LIMIT
        same = LIMIT.model_copy(update={"other_bytes_s": 1 << 20})
        await vault.bandwidth.set_bandwidth(limit=same)
        await vault.bandwidth.set_bandwidth(limit=None)
        assert await vault.bandwidth.bandwidth() is None
        found = [(event.eventCode, event.description) for event in reversed(await vault.status.events())]
        limited = "the uploads of the site are limited: "
        assert found == [
            (
                "BandwidthLimitChanged",
                f"{limited}1048576 bytes a second in work hours (00:00-01:00 UTC on mon), no limit outside",
            ),
            ("BandwidthLimitChanged", f"{limited}1048576 bytes a second at all times"),
            ("BandwidthLimitChanged", "the uploads of the site have no limit"),
        ]


async def test_a_bad_limit_and_a_site_that_refuses_change_nothing(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        with pytest.raises(RigError, match="work_bytes_s is 1; allowed: 65536 to"):
            await vault.bandwidth.set_bandwidth(limit=LIMIT.model_copy(update={"work_bytes_s": 1}))
        assert "site.set_bandwidth" not in world.calls
        world.failing["site.set_bandwidth"] = RigError(Code.DiskFull, "no room")
        with pytest.raises(RigError, match="no room"):
            await vault.bandwidth.set_bandwidth(limit=LIMIT)
        assert await vault.status.events() == []
