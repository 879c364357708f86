"""The vault's database on a real file system without a free block; a store to a mapped page would end the process there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

MIB = 1024 * 1024
WRITER = """
import contextlib
import sys
import trio
from sqlalchemy import text
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.blockfs.core.errors import RigError

ROWS, ROUNDS = 20, 60

def fill(file):
    for size in (65536, 1024):
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(size))

def make(session):
    session.execute(text("CREATE TABLE padding (data BLOB)"))

def add(session):
    for _ in range(ROWS):
        session.execute(text("INSERT INTO padding VALUES (randomblob(900))"))

def count(session):
    return session.execute(text("SELECT count(*) FROM padding")).scalar_one()

async def work(folder):
    database, refused, committed = VaultDatabase(f"sqlite:///{folder}/vault.db"), 0, 0
    await database.transact(make)
    with open(f"{folder}/filler", "ab", buffering=0) as filler:
        for number in range(ROUNDS):
            if number % 4:
                fill(filler)
            else:
                filler.truncate(max(0, filler.seek(0, 2) - 200_000))
            try:
                await database.transact(add)
                committed += 1
            except RigError as error:
                assert error.code == "DiskFull", error
                refused += 1
    assert refused and committed, (refused, committed)
    assert await database.transact(count) == committed * ROWS
    database.close()

trio.run(work, sys.argv[1])
"""
"""It fills the file system before three of four transactions, and gives some room back before the fourth."""


@pytest.fixture
def small_blocks(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system whose blocks are smaller than a page of memory, so that a page can be half allocated."""
    image, where = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_refuses_transactions_and_never_ends_the_process(small_blocks: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, small_blocks], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
