"""The plan of a thrash: it follows from the seed, and each of its rules is one of the fault language."""

from __future__ import annotations

from itertools import islice

import pytest

from siterig.rpc import directory
from siterig.scenarios.faults.rules import read_rule
from siterig.thrash.plan import FAULTS, LINKS, ROLES, WRITERS, draw_faults, draw_vms


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
def test_every_disk_has_one_writer(vms: int, disks: int) -> None:
    planned = draw_vms(1, vms, disks, ("ext4", "xfs", "btrfs"))
    assert len(planned) == vms
    for vm in planned:
        written = [name for writer in vm.writers for name in writer.disks]
        assert sorted(written) == [disk.name for disk in vm.disks]
        assert len(vm.disks) == disks
        raw = {name for writer in vm.writers if writer.kind == "raw" for name in writer.disks}
        assert raw == {disk.name for disk in vm.disks if disk.kind == "raw"}


def test_every_writer_and_file_system_comes_and_the_seed_chooses_their_order() -> None:
    orders = set()
    for seed in range(8):
        planned = draw_vms(seed, 8, 2, ("ext4", "xfs", "btrfs"))
        orders.add(tuple(vm.writers[0].kind for vm in planned))
        assert {writer.kind for vm in planned for writer in vm.writers} == set(WRITERS)
        assert {disk.kind for vm in planned for disk in vm.disks} == {"raw", "ext4", "xfs", "btrfs"}
    assert len(orders) > 4


def test_a_machine_without_a_program_takes_the_other_writers() -> None:
    planned = draw_vms(3, 8, 2, ("ext4",), ("raw", "files", "ledger"))
    assert {writer.kind for vm in planned for writer in vm.writers} == {"raw", "files", "ledger"}
