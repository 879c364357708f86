"""What is left of a rig's processes is found among all others, whatever those are called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from siterig import cleanup
from siterig.layout import Layout


def test_a_process_whose_arguments_are_no_text_hides_nothing(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "rig")
    wait = "import sys; sys.stdin.read()"
    strange = subprocess.Popen([sys.executable, "-c", wait, b"\xff"], stdin=subprocess.PIPE)
    ours = subprocess.Popen([sys.executable, "-c", wait, "siterig.roles.site", str(layout.root)], stdin=subprocess.PIPE)
    try:
        assert [pid for pid, _ in cleanup._processes_of(layout)] == [ours.pid]
    finally:
        strange.communicate()
        ours.communicate()
