"""The runbook recovers what was replicated, and stops at bad data."""

import os

import pytest
import runbook


def add_order(guest, text):
    """Append to the file of orders, durably."""
    with (guest / "orders.csv").open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def shop(siterig_vm):
    """A protected VM whose file of orders has five replicated orders, and its mounted disk."""
    with siterig_vm.mounted() as guest:
        siterig_vm.protect()
        for number in range(5):
            add_order(guest, f"{number},{number * 10}\n")
        siterig_vm.wait_until_replicated()
        yield siterig_vm, guest


def test_a_vm_that_is_not_protected_is_named(siterig_rig, siterig_vm):
    with pytest.raises(runbook.RunbookError, match=f"failover unplanned {siterig_vm.name}: .*{siterig_vm.name}"):
        runbook.recover(siterig_rig.folder, siterig_vm.name)


def test_all_replicated_orders_are_recovered(siterig_rig, shop):
    vm, _ = shop
    siterig_rig.lose_site()
    report = runbook.recover(siterig_rig.folder, vm.name)
    assert report["orders"] == 5
    assert siterig_rig.item(vm.name).activeLocation == "Recovery"


def test_a_failover_with_bad_data_is_not_final(siterig_rig, shop):
    vm, guest = shop
    add_order(guest, "6,")  # the program was stopped in the middle of an order
    vm.wait_until_replicated()
    siterig_rig.lose_site()
    with pytest.raises(runbook.RunbookError, match="choose an earlier recovery point"):
        runbook.recover(siterig_rig.folder, vm.name)
    assert siterig_rig.item(vm.name).activeLocation == "Primary"
