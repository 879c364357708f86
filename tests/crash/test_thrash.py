"""A short thrash of a real rig: VMs with two disks write under random faults, and every recovery point is compared.

``SITERIG_SEED`` repeats a run's choices; ``SITERIG_THRASH_S`` is the time under faults (default 8), ``SITERIG_THRASH_VMS``
the number of VMs (default 4).  ``python -m siterig.thrash`` is a command for longer runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from siterig.blockfs.core.code_root import child_environment
from siterig.thrash.run import Thrash, ThrashOptions

pytestmark = pytest.mark.system

SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
UNDER_FAULTS_S = float(os.environ.get("SITERIG_THRASH_S", "8"))
VMS = int(os.environ.get("SITERIG_THRASH_VMS", "4"))


async def test_every_point_of_a_rig_under_faults_equals_the_writes_before_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    print(f"SITERIG_SEED={SEED}")
    options = ThrashOptions(SEED, vms=VMS, disks=2, seconds=UNDER_FAULTS_S)
    result = await Thrash(tmp_path_factory.mktemp("t"), options, print).run()
    assert result.findings == [], f"SITERIG_SEED={SEED}"
    assert result.points_compared >= VMS
    assert result.acknowledged > 0
    assert sum(result.faults.values()) > 0


def test_a_thrash_in_the_background_ends_by_sigterm_and_leaves_nothing() -> None:
    words = [sys.executable, "-P", "-m", "siterig.thrash", "--vms", "1", "--disks", "1", "--minutes", "5"]
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        process = subprocess.Popen(
            ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *words],  # a shell ignores SIGINT so in a job with "&"
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=child_environment() | {"TMPDIR": folder},
        )
        assert process.stdout is not None
        assert any("under faults" in line for line in process.stdout)
        process.terminate()
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, "interrupted; repeat: " in output) == (130, True), output
        assert list(Path(folder).iterdir()) == []
        assert folder not in Path("/proc/self/mountinfo").read_text()
        attached = subprocess.run(["losetup", "--list", "--output", "BACK-FILE"], capture_output=True, text=True, check=True)
        assert folder not in attached.stdout
