"""A thrash of a real rig: VMs with two disks write under random faults, and every recovery point is compared.

``SITERIG_SEED`` repeats a run's choices; ``SITERIG_THRASH_S`` is the time under faults (default 120), ``SITERIG_THRASH_VMS``
the number of VMs (default 8).  ``python -m siterig.thrash`` is a command for longer runs.
"""

from __future__ import annotations

import os
import time

import pytest

from siterig.thrash.run import Thrash, ThrashOptions

pytestmark = pytest.mark.system

SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
UNDER_FAULTS_S = float(os.environ.get("SITERIG_THRASH_S", "120"))
INTERVAL_S = 10.0
"""The replication interval: the comparison of a point takes longer than the time under faults that makes it."""
VMS = int(os.environ.get("SITERIG_THRASH_VMS", "8"))


async def test_every_point_of_a_rig_under_faults_equals_the_writes_before_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    print(f"SITERIG_SEED={SEED}")
    options = ThrashOptions(SEED, vms=VMS, disks=2, seconds=UNDER_FAULTS_S, interval_s=INTERVAL_S)
    result = await Thrash(tmp_path_factory.mktemp("t"), options, print).run()
    assert result.findings == [], f"SITERIG_SEED={SEED}"
    assert result.points_compared >= VMS
    assert result.acknowledged > 0
    assert sum(result.faults.values()) > 0
