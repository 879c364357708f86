"""The plan of a thrash: it follows from the seed, and each of its rules is one of the fault language."""

from __future__ import annotations

from itertools import islice

import pytest

from siterig.rpc import directory
from siterig.scenarios.faults.rules import read_rule
from siterig.thrash.plan import FAULTS, LINKS, ROLES, draw_faults, draw_vms


def test_a_seed_gives_the_same_plan_each_time() -> None:
    assert draw_vms(3, 8, 2, ("ext4", "xfs")) == draw_vms(3, 8, 2, ("ext4", "xfs"))
    assert list(islice(draw_faults(3), 200)) == list(islice(draw_faults(3), 200))
    assert list(islice(draw_faults(3), 200)) != list(islice(draw_faults(4), 200))


def test_every_drawn_fault_is_a_rule_and_every_kind_comes() -> None:
    drawn = [fault for seed in range(10) for fault in islice(draw_faults(seed), 60)]
    assert {fault.kind for fault in drawn} == set(FAULTS)
    for fault in drawn:
        assert read_rule(f"{fault.words} fired=any").words()
    killed = {fault.words.split()[1] for fault in drawn if fault.kind == "kill"}
    assert killed == set(ROLES)


def test_the_links_are_links_of_a_rig() -> None:
    assert set(LINKS) <= set(directory.LINKS)


@pytest.mark.parametrize(("vms", "disks"), [(1, 1), (2, 1), (8, 2), (5, 3)])
def test_every_disk_has_a_writer(vms: int, disks: int) -> None:
    for vm in draw_vms(1, vms, disks, ("ext4", "xfs", "btrfs")):
        assert len(vm.disks) == disks
        written = {name for writer in vm.writers for name in writer.disks}
        if vm.writers[0].kind == "ledger":
            assert written == {vm.disks[0].name, vm.disks[-1].name}
        else:
            assert written == {disk.name for disk in vm.disks}


def test_the_ways_to_write_take_turns() -> None:
    kinds = [vm.writers[0].kind for vm in draw_vms(1, 8, 2, ("ext4",))]
    assert kinds == ["raw", "files", "ledger", "raw", "raw", "files", "ledger", "raw"]
