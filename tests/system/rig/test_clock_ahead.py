"""Tests of processes with a wrong wall clock (faketime): they count the same elapsed time as all others of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.clock_reading import SECOND_NS, ClockReading
from tests.support.needs import needs_program

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
pytestmark = needs_program("faketime")


def reading_with(offset: str) -> ClockReading:
    code = "from siterig.blockfs.core.clock import SYSTEM_CLOCK; print(SYSTEM_CLOCK.read().model_dump_json())"
    env = os.environ | {"LD_PRELOAD": str(_LIBRARIES[0]), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return ClockReading.model_validate_json(done.stdout)


@pytest.mark.parametrize(("offset", "days"), [("+2d", 2), ("-2d", -2), ("+400d", 400)])
def test_a_wall_clock_that_is_days_off_is_a_jump_and_not_elapsed_time(offset: str, days: int) -> None:
    before = SYSTEM_CLOCK.read()
    ahead = reading_with(offset)
    assert before.elapsed_ns(ahead) < 600 * SECOND_NS
    assert round(before.jump_ns(ahead) / SECOND_NS / 86400) == days
    assert before.jump_ns(SYSTEM_CLOCK.read()) == 0
