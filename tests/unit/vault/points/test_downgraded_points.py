"""Points that were to be application-consistent and are not: why is kept beside the point, whose name is the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.cli.commands import vms
from tests.support.command import siterig
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, protected, running

WHY = "no mounted file system"


async def test_a_point_has_the_reason_why_it_is_not_application_consistent(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.downgrading = WHY
        point = await vault.recovery_points.create_point(vm="web01", kind="ApplicationConsistent", name="app1")
        assert (point.name, point.type, point.downgraded_because) == ("app1", "CrashConsistent", WHY)
        assert [found.downgraded_because for found in await vault.recovery_points.points(vm="web01")] == [WHY, None]


@pytest.mark.slow
@pytest.mark.parametrize("applied_first", [True, False])
async def test_a_scheduled_point_does_before_and_after_the_report(tmp_path: Path, applied_first: bool) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.apply = False
        cut = await vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="scheduled")
        if applied_first:
            await world.apply_cached()
        for _ in range(2):  # a repeat changes nothing
            await vault.reports.point_sent(
                vm="web01",
                tag_id=cut.tag_id,
                kind=cut.kind,
                name=cut.name,
                position=cut.position,
                time_ns=cut.time_ns,
                downgraded_because=WHY,
            )
        if not applied_first:
            assert len(await vault.recovery_points.points(vm="web01")) == 1, "its tag was not applied yet"
            await world.apply_cached()
        newest, _ = await vault.recovery_points.points(vm="web01")
        assert (newest.id, newest.name, newest.downgraded_because) == (cut.tag_id, "scheduled", WHY)
        # A point that a newer one has passed by cannot come any more.
        await vault.reports.point_sent(
            vm="web01",
            tag_id="late",
            kind=cut.kind,
            name="x",
            position=cut.position - 1,
            time_ns=START_NS,
            downgraded_because=WHY,
        )
        assert len(await vault.recovery_points.points(vm="web01")) == 2


def test_take_point_reports_the_downgrade_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    made = RecoveryPoint(
        id="p1",
        name="app1",
        type="CrashConsistent",
        time="t",
        position=3,
        time_ns=1,
        downgraded_because=WHY,
    )

    class Vault:
        async def create_point(self, **_arguments: object) -> RecoveryPoint:
            return made

        async def points(self, **_arguments: object) -> list[RecoveryPoint]:
            return [made, made.model_copy(update={"downgraded_because": None})]

    monkeypatch.setattr(vms, "vault", lambda _folder: Vault())
    result = siterig("take-point", "web01", "--app-consistent", "--name", "app1")
    assert (result.exit_code, result.stdout) == (0, "CrashConsistent point p1 at position 3\n")
    assert result.stderr == f"siterig: note: the point is not application-consistent: {WHY}\n"
    assert '"downgraded_because": "no mounted file system"' in siterig("take-point", "web01", "--json").stdout
    head, first, second = siterig("points", "web01").stdout.splitlines()
    assert [line.split("\t")[-1] for line in (head, first, second)] == ["not application-consistent because", WHY, "-"]
