"""Recovery points that a test's site reports."""

from __future__ import annotations

from siterig.blockfs.contracts.control import CutInfo, TagKind
from tests.support.rigs.fake_world import World


async def cut(world: World, kind: TagKind = "CrashConsistent") -> CutInfo:
    """Make a cut at the world's time, and apply it on every disk."""
    world.position += 10
    made = CutInfo(
        vm="web01",
        tag_id=f"00000000-0000-4000-8000-{world.position:012}",
        kind=kind,
        name="cycle",
        position=world.position,
        time_ns=world.now_ns,
    )
    world.cached.append(("web01", made))
    await world.apply_cached()
    return made
