"""What users name recovery points, and points that are found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from azure_emu.vault.schema import JobRow
from blockfs.errors import RigError
from siterig.show import print_table
from tests.unit.vault_fakes import World, ended, protected, running


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "a\u202eb", "n" * 101])
async def test_a_point_is_not_named_so_that_a_line_cannot_tell_it(tmp_path: Path, name: str) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=r"point is named .*; allowed are 1 to 100 printable characters") as caught:
            await vault.create_point(vm="web01", kind="CrashConsistent", name=name)
        assert (caught.value.code, caught.value.message.isprintable()) == ("InvalidName", True)
        assert (await vault.create_point(vm="web01", kind="CrashConsistent", name="vor dem Öffnen")).name == "vor dem Öffnen"


def test_a_table_tells_a_name_in_its_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("a\nb\x1b[31mc\u202e", 1), ("ö", 2)], empty="")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "n"], [r"a\nb\x1b[31mc\u202e", "1"], ["ö", "2"],
    ]  # fmt: skip


async def test_a_point_is_found_by_its_name_if_no_other_has_it(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        point = await vault.create_point(vm="web01", kind="CrashConsistent", name="my point")
        mounted = await vault.mount_point(vm="web01", point="my point")
        assert (mounted.name, mounted.recovery_point) == (point.id, point)
        job = await vault.test_failover(vm="web01", point="my point")
        choice = await vault._services.store.transact(
            lambda session: session.scalars(select(JobRow.memory).where(JobRow.name == job.name)).one()["choice"]
        )
        assert choice == point.id, "another may get that name meanwhile"
        assert (await ended(vault, job)).recovery_point == point
        newer = await vault.create_point(vm="web01", kind="CrashConsistent", name="my point")
        with pytest.raises(RigError) as caught:
            await vault.mount_point(vm="web01", point="my point")
        assert (caught.value.code, caught.value.message) == (
            "NoSuchPoint",
            f"VM 'web01' has 2 recovery points named 'my point', the newest is {newer.id}: say which by its id",
        )


async def test_after_a_commit_it_is_told_what_can_be_read_without_points(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.unplanned_failover(vm="web01", point="LatestProcessed"))
        await ended(vault, await vault.commit_failover(vm="web01"))
        for choice in ("my point", "Latest", "LatestProcessed", None):
            with pytest.raises(RigError) as caught:
                await vault.mount_point(vm="web01", point=choice)
            assert (caught.value.code, caught.value.message) == (
                "NoSuchPoint", "VM 'web01': points were deleted by the commit; positions 1 to 10 can be read",
            )  # fmt: skip
        assert (await vault.mount_point(vm="web01", position=9)).position == 9
