"""Tests of the import of logs from QEMU's ``blklogwrites`` driver: their replay gives the disk that QEMU wrote."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from siterig.blockfs.changelog.exchange import export_log, import_log
from siterig.blockfs.changelog.replay import Replay, check, open_image
from tests.support.needs import needs_program

pytestmark = [pytest.mark.system, needs_program("qemu-img")]

DISK_BYTES = 16 << 20
SEED = 20260


def commands(rng: random.Random, sector_bytes: int) -> list[str]:
    made = []
    for _ in range(120):
        sectors = DISK_BYTES // sector_bytes
        first = rng.randrange(sectors)
        count = min(rng.randrange(1, 600), sectors - first)
        where = f"{first * sector_bytes} {count * sector_bytes}"
        made.append(
            rng.choice(
                [f"write -P {rng.randrange(1, 256)} {where}"] * 4 + [f"write -z {where}", f"discard {where}", "flush"]
            )
        )
    return [*made, "flush"]


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_the_replay_of_a_log_of_qemu_gives_the_disk_of_qemu(tmp_path: Path, sector_bytes: int) -> None:
    rng = random.Random(SEED + sector_bytes)
    disk, log, image = tmp_path / "disk", tmp_path / "log", tmp_path / "image"
    start = rng.randbytes(DISK_BYTES)
    disk.write_bytes(start)
    log.touch()
    options = (
        f"driver=blklogwrites,file.driver=file,file.filename={disk},file.discard=unmap,"
        f"log.driver=file,log.filename={log},log-sector-size={sector_bytes}"
    )
    arguments = [word for command in commands(rng, sector_bytes) for word in ("-c", command)]
    subprocess.run(["qemu-io", "--image-opts", options, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert disk.read_bytes() != start

    made = import_log(log, tmp_path, "os", size_bytes=DISK_BYTES)
    exported = tmp_path / "exported"
    export_log(check(made.paths), exported)
    again = import_log(exported, tmp_path, "again", size_bytes=DISK_BYTES)
    for paths in (made.paths, again.paths):
        image.write_bytes(start)
        onto = open_image(image, check(paths), writable=True)
        Replay(check(paths), onto).run()
        onto.close()
        assert image.read_bytes() == disk.read_bytes()
