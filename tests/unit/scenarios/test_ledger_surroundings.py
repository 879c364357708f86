"""Corpus, comparison of disks, and the figures of a loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.scenarios.checks.vm_checks import check_corpus, first_difference
from siterig.scenarios.drill.drill_loss import recovery_point_s
from siterig.scenarios.workloads import corpus
from siterig.scenarios.workloads.ack_log import Ack

MIB = 1024 * 1024


def tree(root: Path) -> Path:
    (root / "b").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a" * 100)
    (root / "b" / "c.txt").write_bytes(b"c" * 200)
    (root / "empty").touch()
    (root / "link").symlink_to(root / "a.txt")
    os.mkfifo(root / "fifo")
    (root / "z.txt").write_bytes(b"z" * 300)
    return root


def test_corpus_takes_regular_files_in_a_fixed_order_until_it_has_enough(tmp_path: Path) -> None:
    root = tree(tmp_path / "source")
    names = [path.relative_to(root).as_posix() for path, _ in corpus.choose(301, [root])]
    assert names == ["a.txt", "z.txt"]
    assert [size for _, size in corpus.choose(600, [root])] == [100, 300, 200]


def test_a_machine_with_too_few_files_gets_the_number_of_bytes_there_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "source")
    with pytest.raises(RigError) as caught:
        corpus.choose(601, [root])
    assert caught.value.message == f"{root} hold 600 bytes of readable files: 601 are needed"


def test_corpus_is_dealt_to_the_disks_evenly() -> None:
    files = [(Path(str(size)), size) for size in (100, 60, 50, 10)]
    assert corpus.distribute(files, 2) == [[Path("100"), Path("10")], [Path("60"), Path("50")]]


@pytest.mark.slow
async def test_a_filled_corpus_is_verified_and_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    root, where = tree(tmp_path / "source"), tmp_path / "disk"
    where.mkdir()
    copied: list[int] = []
    manifest = await corpus.fill([path for path, _ in corpus.choose(600, [root])], where, copied.append)
    assert manifest.size_bytes == sum(copied) == 600
    finding = await check_corpus("os", manifest, where)
    assert finding.ok
    assert finding.evidence == "3 files, 0 MiB, every SHA-256 as when they were written"

    copy = where / "corpus" / root.relative_to("/")
    (copy / "a.txt").write_bytes(b"b" * 100)
    (copy / "z.txt").unlink()
    (copy / "extra").touch()
    prefix = root.relative_to("/").as_posix()
    assert await corpus.verify(manifest, where) == [
        f"{prefix}/a.txt: content differs",
        f"{prefix}/z.txt: No such file or directory",
        f"{prefix}/extra: not in the manifest",
    ]
    assert not (await check_corpus("os", manifest, where)).ok


@pytest.mark.parametrize("offset", [0, 1, 4 * MIB - 1, 4 * MIB, 5 * MIB + 12345, 6 * MIB - 1])
async def test_the_first_byte_that_differs_is_named(tmp_path: Path, offset: int) -> None:
    data = bytearray(6 * MIB)
    (tmp_path / "a").write_bytes(data)
    data[offset] = 1
    data[-1] = 1
    (tmp_path / "b").write_bytes(data)
    assert await first_difference(tmp_path / "a", tmp_path / "b", lambda _done: None) == offset


@pytest.mark.parametrize("sizes", [(0, 1), (MIB, MIB - 1), (4 * MIB, 4 * MIB + 1)])
async def test_a_shorter_disk_differs_where_it_ends(tmp_path: Path, sizes: tuple[int, int]) -> None:
    for name, size in zip("ab", sizes, strict=True):
        (tmp_path / name).write_bytes(bytes(size))
    assert await first_difference(tmp_path / "a", tmp_path / "b", lambda _done: None) == min(sizes)


async def test_equal_disks_have_no_difference_and_progress_reaches_their_size(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(5 * MIB))
    seen: list[int] = []
    assert await first_difference(tmp_path / "a", tmp_path / "b", seen.append) is None
    assert seen == [4 * MIB, 5 * MIB]


async def test_a_disk_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(RigError) as caught:
        await first_difference(tmp_path / "a", tmp_path / "b", lambda _done: None)
    assert caught.value.code == "DiskUnreadable"
    assert str(tmp_path / "b") in caught.value.message


def test_rpo_is_the_age_of_the_newest_transaction_that_was_recovered() -> None:
    acks = [Ack(n, n, n, n * 1_000_000_000) for n in (1, 2, 3, 4)]
    assert recovery_point_s(acks, present=3, lost_ns=4_500_000_000) == 1.5
    assert recovery_point_s(acks, present=0, lost_ns=4_500_000_000) is None
