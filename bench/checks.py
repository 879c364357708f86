"""Checksums of both sides: the hasher, a resync, and a verification, each against the plain way to do the same.

``python -m bench.checks [--rounds 5] [--folder DIR] [--json FILE] [hasher] [resync] [verify]``; needs root, FUSE, rsync and
the ``siterig`` of this environment.

- *hasher*: 1 GiB in the page cache; the peer is pread and GMAC of libcrypto by hand, in a thread for each core;
- *resync*: 4 GiB, half of it data, 655 blocks of 64 KiB changed since the log was abandoned, from the order to the end of
  the job; the peer is ``rsync --inplace`` between two files with the same contents.  Also the bytes that were sent, against
  the bytes that changed;
- *verify*: a disk of 1 TiB with 100,000 extents (``BENCH_EXTENTS``); the peer reads the same extents of the disk in the
  mount, and then of the managed disk through a mounted point.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from siterig.blockfs.layers.chunk_tags import tag_chunks
from siterig.blockfs.layers.layer import RawLayer

MIB = 1 << 20
TARGETS = {"hasher": 0.85, "resync time": 0.35, "resync bytes": 1.02, "verify": 1.2}
"""At least for the hasher, at most for the others."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one round: ours, and those of the peer."""

    what: str
    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """Ours against the peer: of speeds for the hasher, of times and bytes otherwise."""
        return self.peer / self.ours if self.what == "hasher" else self.ours / self.peer


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- hasher -----------------------------------------------------------------------------------------------------


def _libcrypto() -> Any:
    crypto, pointer = ctypes.CDLL("libcrypto.so.3"), ctypes.c_void_p
    crypto.EVP_CIPHER_CTX_new.restype = crypto.EVP_aes_256_gcm.restype = pointer
    crypto.EVP_EncryptInit_ex.argtypes = [pointer, pointer, pointer, ctypes.c_char_p, ctypes.c_char_p]
    crypto.EVP_EncryptUpdate.argtypes = [pointer, pointer, pointer, pointer, ctypes.c_int]
    crypto.EVP_EncryptFinal_ex.argtypes = [pointer, pointer, pointer]
    crypto.EVP_CIPHER_CTX_ctrl.argtypes = [pointer, ctypes.c_int, ctypes.c_int, pointer]
    return crypto


def _by_hand(crypto: Any, path: Path, key: bytes, chunks: range) -> None:
    cipher, length, tag = crypto.EVP_CIPHER_CTX_new(), ctypes.c_int(), ctypes.create_string_buffer(16)
    crypto.EVP_EncryptInit_ex(cipher, crypto.EVP_aes_256_gcm(), None, key, None)
    buffer = bytearray(MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    fd = os.open(path, os.O_RDONLY)
    for chunk in chunks:
        os.preadv(fd, [buffer], chunk * MIB)
        crypto.EVP_EncryptInit_ex(cipher, None, None, None, chunk.to_bytes(12, "little"))
        crypto.EVP_EncryptUpdate(cipher, None, ctypes.addressof(length), address, MIB)
        crypto.EVP_EncryptFinal_ex(cipher, tag, ctypes.addressof(length))
        crypto.EVP_CIPHER_CTX_ctrl(cipher, 0x10, 16, tag)
    os.close(fd)


def hasher(folder: Path, rounds: int) -> Iterator[Measured]:
    """Tag 1 GiB in both ways, in turn."""
    path, count, cores = folder / "hashed", 1024, os.cpu_count() or 1
    with path.open("wb") as file:
        for _ in range(count):
            file.write(secrets.token_bytes(MIB))
    key, crypto, layer = secrets.token_bytes(32), _libcrypto(), RawLayer(path)

    def by_hand() -> None:
        threads = [
            threading.Thread(target=_by_hand, args=(crypto, path, key, range(first, count, cores))) for first in range(cores)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def ours() -> None:
        tag_chunks(layer, key, MIB, [(0, count)], tags_max=count)

    for work in (by_hand, ours):
        work()  # nothing is cold in the first round
    for _ in range(rounds):
        yield Measured("hasher", _seconds(ours), _seconds(by_hand))
    layer.close()
    path.unlink()


# --- a rig ------------------------------------------------------------------------------------------------------


def _run(*words: str) -> Any:
    command = [str(Path(sys.executable).with_name("siterig")), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip() else None


@contextlib.contextmanager
def _rig(folder: Path, *options: str) -> Iterator[Path]:
    os.environ["SITERIG_DIR"] = str(folder)
    _run("up", *options)
    try:
        yield folder
    finally:
        _run("down")


def _job_seconds(job: dict[str, Any]) -> float:
    return (datetime.fromisoformat(job["endTime"]) - datetime.fromisoformat(job["startTime"])).total_seconds()


def _sent_bytes(folder: Path) -> int:
    """Return the bytes of all blobs that Azurite has stored so far, which it does not free at once."""
    return sum(path.stat().st_size for path in (folder / "azurite").rglob("*") if path.is_file())


# --- resync -----------------------------------------------------------------------------------------------------

SIZE, BLOCK, CHANGED = 4 << 30, 64 << 10, 655


def _fill(path: Path, seed: int) -> None:
    """Write every other MiB of the first 4 GiB."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    with path.open("r+b") as file:
        for at in range(0, SIZE, 2 * MIB):
            file.seek(at)
            file.write(rng.randbytes(MIB))
        os.fsync(file.fileno())


def _change(path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 (no secret)
    blocks = [at // BLOCK + rng.randrange(MIB // BLOCK) for at in rng.sample(range(0, SIZE, 2 * MIB), CHANGED)]
    with path.open("r+b") as file:
        for block in sorted(blocks):
            file.seek(block * BLOCK)
            file.write(rng.randbytes(BLOCK))
        os.fsync(file.fileno())


def resync(folder: Path, rounds: int) -> Iterator[Measured]:
    """Resynchronize and rsync the same change, in turn."""
    mine, theirs = folder / "source", folder / "copy"
    for path in (mine, theirs):
        path.touch()
        os.truncate(path, SIZE)
    _fill(mine, 1)
    subprocess.run(["cp", "--sparse=always", mine, theirs], check=True)
    with _rig(folder / "rig", "--log-share-max", "0.001", "--quick-retries") as rig:
        _run("vm", "create", "web01", "--disk", f"data={mine}")
        _run("protect", "web01", "--interval", "300")
        disk = rig / "site" / "mnt" / "web01" / "data.img"
        for number in range(rounds):
            _change(disk, 100 + number)
            _change(mine, 100 + number)
            before = _sent_bytes(rig)
            took = _job_seconds(_run("resync", "web01")["job"])
            sent = _sent_bytes(rig) - before
            peer = _seconds(lambda: subprocess.run(["rsync", "--inplace", "--no-whole-file", mine, theirs], check=True))
            yield Measured("resync time", took, peer)
            yield Measured("resync bytes", sent, CHANGED * BLOCK)


# --- verify -----------------------------------------------------------------------------------------------------

WIDE, EXTENT = 1 << 40, 4096
EXTENTS = int(os.environ.get("BENCH_EXTENTS", "100000"))


def verify(folder: Path, rounds: int) -> Iterator[Measured]:
    """Verify a wide sparse disk, and read its extents on both sides, in turn."""
    rng = random.Random(3)  # noqa: S311 (no secret)
    offsets = sorted(rng.sample(range(0, WIDE, 10 * MIB), EXTENTS))
    with _rig(folder / "wide", "--quick-retries") as rig:
        _run("vm", "create", "web01", "--disk", f"data:{WIDE}")
        disk = rig / "site" / "mnt" / "web01" / "data.img"
        with disk.open("r+b") as file:
            for offset in offsets:
                os.pwrite(file.fileno(), rng.randbytes(EXTENT), offset)
            os.fsync(file.fileno())
        _run("protect", "web01", "--interval", "300")
        mounted = Path(_run("point", "mount", "web01")["disks"][0]["path"])

        def read_both() -> None:
            for path in (disk, mounted):
                fd = os.open(path, os.O_RDONLY)
                for offset in offsets:
                    os.pread(fd, EXTENT, offset)
                os.close(fd)

        for _ in range(rounds):
            yield Measured("verify", _seconds(lambda: _run("verify", "web01")), _seconds(read_both))


SUBJECTS = {"hasher": hasher, "resync": resync, "verify": verify}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the images are; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    console = Console(width=120)
    measured: list[Measured] = []
    for name in options.subjects:
        with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as folder:
            for each in SUBJECTS[name](Path(folder), options.rounds):
                console.print(f"{each.what}: {each.ours:,.3f} beside {each.peer:,.3f}: {each.ratio:.2f}", style="dim")
                measured.append(each)
    table = Table("median ratio to the peer", "found", "lowest", "highest", "target", "")
    for what, target in TARGETS.items():
        ratios = sorted(each.ratio for each in measured if each.what == what)
        if ratios:
            middle = statistics.median(ratios)
            holds = middle >= target if what == "hasher" else middle <= target
            texts = [f"{value:.2f}" for value in (middle, ratios[0], ratios[-1], target)]
            table.add_row(what, *texts, "holds" if holds else "[bold]does not hold[/bold]")
    console.print(table)
    if options.json:
        rows = [{"what": each.what, "ours": each.ours, "peer": each.peer} for each in measured]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
