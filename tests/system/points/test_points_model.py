"""Tests of random walks over the recovery side: parts, points, mounts, failovers, retention, resyncs and kills.

Vault, applier and disk host are separate processes over real managed disks and a real mount; byte arrays are the
model.  There are ``SITERIG_WALKS`` walks (default 2) of ``SITERIG_STEPS`` steps (default 25); ``SITERIG_SEED`` is the
seed of the first walk.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.points.points_rig import recovery_side
from tests.system.points.points_walk import Walk

pytestmark = pytest.mark.system

WALKS = int(os.environ.get("SITERIG_WALKS", "2"))
STEPS = int(os.environ.get("SITERIG_STEPS", "25"))
SEED = int(os.environ.get("SITERIG_SEED", "20261122"))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a short name, because it contains sockets; it is removed after the test."""
    folder = tmp_path_factory.mktemp("m")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("seed", range(SEED, SEED + WALKS))
async def test_every_promised_state_is_there_and_equals_the_model(folder: Path, seed: int) -> None:
    print(f"SITERIG_SEED={seed} SITERIG_WALKS=1 SITERIG_STEPS={STEPS}")
    async with recovery_side(folder / "rig", random.Random(seed)) as rig:
        walk = Walk(rig, seed, print)
        await walk.begin()
        for number in range(STEPS):
            await walk.step(number)
        await walk.end()
        if unexpected := rig.unexpected():
            pytest.fail("\n".join(unexpected))
