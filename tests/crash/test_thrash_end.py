"""A thrash that is interrupted releases everything."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from siterig.blockfs.core.code_root import child_environment

pytestmark = pytest.mark.system


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
