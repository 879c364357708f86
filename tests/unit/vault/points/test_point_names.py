"""Users name recovery points, and find points by these names."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import JobRow, PointRow
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.cli.output import print_table
from siterig.core.parsing import parse_point
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "a\u202eb", "n" * 101])
async def test_a_point_gets_no_name_that_a_line_cannot_show(tmp_path: Path, name: str) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=r"point is named .*; allowed: 1 to 100 printable characters") as caught:
            await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)
        assert (caught.value.code, caught.value.message.isprintable()) == ("InvalidName", True)
        assert (
            await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="vor dem Öffnen")
        ).name == "vor dem Öffnen"


RESERVED = [
    "latest",
    "Latest",
    "LATEST",
    "latest-processed",
    "LatestProcessed",
    "latest_processed",
    "latest-app",
    "Latest-App",
    "LatestApplicationConsistent",
    "latest-application-consistent",
    "latest app",
    "@5",
    "@0",
    "@",
    "@five",
    "@99999999999999999999",
    "2026-11-21T22:13:17Z",
    "2026-11-21 22:13:17+01:00",
    "2026-11-21t",
    "2026-11-21T25:99:99Z",
    "2b4ddfef-d68f-4a11-8a22-0123456789ab",
    "2B4DDFEF-D68F-4A11-8A22-0123456789AB",
    "-x",
    "--point",
    " before",
    "after ",
]
SELECTABLE = ["5", "before the upgrade", "2026-11-21", "latest-backup", "a@5", "2b4ddfef", "x-", "vor dem Öffnen", "None"]


async def test_a_name_that_no_command_could_select_is_refused(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        for name in RESERVED:
            with pytest.raises(RigError, match="cannot be selected by this name; reserved: latest, ") as caught:
                await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)
            assert (name, caught.value.code) == (name, "InvalidName")


async def test_every_other_name_selects_its_point(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        points = {
            name: await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)
            for name in (*SELECTABLE, "another")
        }
        for name in SELECTABLE:
            mounted = await vault.mounts.mount_point(vm="web01", point=parse_point(name))
            assert mounted.recovery_point == points[name]
            await vault.mounts.unmount_point(vm="web01", name=mounted.name)
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point=parse_point(SELECTABLE[0])))
        assert job.recovery_point == points[SELECTABLE[0]]


async def test_a_word_is_understood_in_any_spelling(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        newest = (await vault.recovery_points.points(vm="web01"))[0]
        for text in ("LATEST", "latest", "Latest", "latest-processed", "Latest_Processed"):
            mounted = await vault.mounts.mount_point(vm="web01", point=text)
            assert (text, mounted.recovery_point) == (text, newest)
            await vault.mounts.unmount_point(vm="web01", name=mounted.name)


async def test_the_beginning_of_an_id_selects_its_point_and_no_point_can_be_named_so(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        point = (await vault.recovery_points.points(vm="web01"))[0]
        short = point.id[:8]
        mounted = await vault.mounts.mount_point(vm="web01", point=short)
        assert (mounted.recovery_point, mounted.name) == (point, point.id)
        await vault.mounts.unmount_point(vm="web01", name=short)
        assert await vault.mounts.mounted_points(vm="web01") == []
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point=short))
        assert job.recovery_point == point
        assert (await vault.status.job(name=job.name[:8])).name == job.name
        for name in (short, point.id[:20], short.upper()):
            with pytest.raises(RigError, match=f"is the beginning of the id of point {point.id}") as caught:
                await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)
            assert caught.value.code == "InvalidName"


async def test_a_name_with_which_a_newer_points_id_begins_selects_neither_silently(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        named = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="20261129")
        newer = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="newer")
        assert (await vault.mounts.mount_point(vm="web01", point="20261129")).recovery_point == named

        def rename(session: Session) -> None:
            session.execute(update(PointRow).where(PointRow.tag_id == named.id).values(name=newer.id[:8]))

        await vault.context.database.transact(rename)
        with pytest.raises(RigError, match="select one by its id") as caught:
            await vault.failovers.test_failover(vm="web01", point=newer.id[:8])
        assert caught.value.code == "AmbiguousId"
        assert named.id in caught.value.message and newer.id in caught.value.message


async def test_the_beginning_of_several_ids_is_an_error_that_lists_them(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        names = [(await ended(vault, await vault.protection.resync(vm="web01"))).name for _ in range(2)]
        twins = [f"abcdabcd{name[8:]}" for name in names]

        def rename(session: Session) -> None:
            for name, twin in zip(names, twins, strict=True):
                session.execute(update(JobRow).where(JobRow.name == name).values(name=twin))

        await vault.context.database.transact(rename)
        with pytest.raises(RigError) as caught:
            await vault.status.job(name="abcd")
        assert caught.value.code == "AmbiguousId"
        assert all(twin in caught.value.message for twin in twins)


async def test_an_id_is_understood_in_capitals(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        point = (await vault.recovery_points.points(vm="web01"))[-1]
        assert (await vault.mounts.mount_point(vm="web01", point=point.id.upper())).recovery_point == point


@pytest.mark.parametrize(
    ("vm", "why"),
    [
        ("recovery", "a recovery side's mount has its mounted points there"),
        ("v" * 59, "59 characters; allowed are 58, because its test VM is named VM-test"),
        ("-x", "allowed: 1 to 63 letters"),
        ("a/b", "allowed: 1 to 63 letters"),
        ("", "allowed: 1 to 63 letters"),
    ],
)
async def test_a_vm_name_that_the_other_side_forbids_is_refused_first(tmp_path: Path, vm: str, why: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        with pytest.raises(RigError, match=why) as caught:
            await vault.vms.create_vm(vm=vm, disks=[DiskSpec(name="os", size_bytes=1 << 20)])
        assert (caught.value.code, world.calls) == ("InvalidName", [])


def test_a_table_shows_every_name_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("a\nb\x1b[31mc\u202e", 1), ("ö", 2)], empty="")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "n"],
        [r"a\nb\x1b[31mc\u202e", "1"],
        ["ö", "2"],
    ]


async def test_a_point_is_found_by_its_name_if_no_other_has_it(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        point = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="my point")
        mounted = await vault.mounts.mount_point(vm="web01", point="my point")
        assert (mounted.name, mounted.recovery_point) == (point.id, point)
        job = await vault.failovers.test_failover(vm="web01", point="my point")
        choice = await vault.context.database.transact(
            lambda session: session.scalars(select(JobRow.variables).where(JobRow.name == job.name)).one()["choice"]
        )
        assert choice == point.id, "another may get that name meanwhile"
        assert (await ended(vault, job)).recovery_point == point
        newer = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="my point")
        with pytest.raises(RigError) as caught:
            await vault.mounts.mount_point(vm="web01", point="my point")
        assert (caught.value.code, caught.value.message) == (
            "NoSuchPoint",
            f"VM 'web01' has 2 recovery points named 'my point', the newest is {newer.id}: select one by its id",
        )


async def test_after_a_commit_the_range_without_points_is_reported(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        for choice in ("my point", "Latest", "LatestProcessed", None):
            with pytest.raises(RigError) as caught:
                await vault.mounts.mount_point(vm="web01", point=choice)
            assert (caught.value.code, caught.value.message) == (
                "NoSuchPoint",
                "VM 'web01': points were deleted by the commit; positions 1 to 10 can be read",
            )
        assert (await vault.mounts.mount_point(vm="web01", position=9)).position == 9
