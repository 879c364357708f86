"""Tags of many chunks in one call equal the tags of the chunks one by one, and holes are not read."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.chunk_tags import DataRanges, tag_chunks
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.cext.checksums import chunk_tag
from siterig.cext.packed_tags import PACKED_BYTES, PackedTags, below, differing, unpack
from tests.support.io_faults import READ, io_verdict

KEY = bytes(range(32))
BLOCK = 4096


def sparse_disk(path: Path, seed: int, chunk_bytes: int) -> tuple[RawLayer, bytes]:
    """Return a disk of 20 chunks and a half with data in random places, some of it zeros, and its contents."""
    rng = random.Random(seed)
    data = bytearray(20 * chunk_bytes + chunk_bytes // 2 + 512)
    with path.open("wb") as file:
        file.truncate(len(data))
        for _ in range(rng.randrange(8, 25)):
            at = rng.randrange(0, len(data) - 1, 512)
            length = min(len(data) - at, rng.choice((512, 5000, chunk_bytes, 3 * chunk_bytes)))
            piece = rng.choice((rng.randbytes, bytes))(length)
            data[at : at + len(piece)] = piece
            file.seek(at)
            file.write(piece)
    return RawLayer(path), bytes(data)


def plain_tags(data: bytes, chunk_bytes: int, first: int, count: int) -> dict[int, bytes]:
    tags = {
        chunk: chunk_tag(KEY, chunk, data[chunk * chunk_bytes : (chunk + 1) * chunk_bytes].ljust(chunk_bytes, b"\0"))
        for chunk in range(first, first + count)
    }
    return {chunk: tag for chunk, tag in tags.items() if any(tag)}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [BLOCK, 64 << 10])
@pytest.mark.parametrize("seed", range(4))
def test_tags_in_one_call_equal_the_tags_of_each_chunk(tmp_path: Path, seed: int, chunk_bytes: int, threads: int) -> None:
    print(f"replay with seed {seed}")
    layer, data = sparse_disk(tmp_path / "disk", seed, chunk_bytes)
    for spans in ([(0, 21)], [(0, 30)], [(2, 3), (7, 1), (20, 5)]):
        want: dict[int, bytes] = {}
        for first, count in spans:
            want |= plain_tags(data, chunk_bytes, first, count)
        for ranges in (None, DataRanges(layer.data_ranges()), DataRanges([(0, len(data))])):
            found = tag_chunks(layer, KEY, chunk_bytes, spans, tags_max=100, data=ranges, threads=threads)
            assert unpack(found.packed) == want
            assert found.upto is None
    layer.close()


def test_a_call_with_too_many_chunks_ends_early_and_the_next_one_continues(tmp_path: Path) -> None:
    layer, data = sparse_disk(tmp_path / "disk", 1, BLOCK)
    want = plain_tags(data, BLOCK, 0, 21)
    found: dict[int, bytes] = {}
    first = 0
    while True:
        part = tag_chunks(layer, KEY, BLOCK, [(first, 21 - first)], tags_max=2)
        found |= unpack(part.packed)
        assert all(chunk < (part.upto or 99) for chunk in found)
        if part.upto is None:
            break
        assert part.upto > first
        first = part.upto
    assert len(want) > 4
    assert found == want
    layer.close()


def test_only_the_given_ranges_are_read(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(8 * BLOCK))
    layer = RawLayer(path)
    found = tag_chunks(layer, KEY, BLOCK, [(0, 8)], tags_max=8, data=DataRanges([(BLOCK, 100), (5 * BLOCK, BLOCK)]))
    assert list(unpack(found.packed)) == [1, 5]
    layer.close()


def test_the_holes_of_a_large_disk_are_not_read(tmp_path: Path) -> None:
    path, mib, chunks = tmp_path / "disk", 1 << 20, 1024
    with path.open("wb") as file:
        file.truncate(chunks * mib)
        for chunk in (0, 77, 78, 1023):
            file.seek(chunk * mib + 64 * BLOCK)
            file.write(os.urandom(64 * BLOCK))
    layer = RawLayer(path)
    read_bytes = 0

    def count(operation: int, _path: str, _offset: int, size: int) -> int:
        nonlocal read_bytes
        read_bytes += size if operation == READ else 0
        return 0

    with io_verdict(count):
        found = tag_chunks(layer, KEY, mib, [(0, chunks)], tags_max=chunks)
    assert list(unpack(found.packed)) == [0, 77, 78, 1023]
    assert read_bytes == mib
    layer.close()


def test_an_unreadable_chunk_is_an_error_or_differs_from_everything(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(4 * BLOCK))
    layer = RawLayer(path, size_bytes=6 * BLOCK)  # as if another program had truncated the file
    whole = DataRanges([(0, 6 * BLOCK)])
    with pytest.raises(OSError):
        tag_chunks(layer, KEY, BLOCK, [(0, 6)], tags_max=6, data=whole)
    first, second = (
        tag_chunks(layer, KEY, BLOCK, [(0, 6)], tags_max=6, data=whole, unreadable_differs=True).packed for _ in range(2)
    )
    assert differing(first, second) == [4, 5]
    layer.close()


def test_differing_chunks_are_those_whose_tags_are_not_equal() -> None:
    def packed(**tags: int) -> bytes:
        return b"".join(int(chunk[1:]).to_bytes(8, "little") + bytes([tag] * 16) for chunk, tag in tags.items())

    ours, theirs = packed(c1=1, c3=3, c5=5), packed(c1=1, c2=2, c3=4, c5=5)
    assert differing(ours, ours) == []
    assert differing(ours, theirs) == [2, 3]
    assert below(theirs, 3) == packed(c1=1, c2=2)
    assert below(theirs, None) == theirs


def test_a_chunk_size_that_is_no_multiple_of_a_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * BLOCK)
    layer = RawLayer(tmp_path / "disk")
    for wrong in (0, 100, 2 << 20):
        with pytest.raises(ValueError, match=f"chunk_bytes is {wrong}; allowed: multiples of 4096 up to 1048576"):
            tag_chunks(layer, KEY, wrong, [(0, 1)], tags_max=1)
    layer.close()


@pytest.mark.parametrize(
    ("tags", "upto", "message"),
    [
        (b"x" * 23, None, "23 bytes are no whole number of tags of 24 bytes"),
        (bytes(16 + 8) * 2, None, "the tags of chunks are not in ascending order"),
        ((9).to_bytes(8, "little") + bytes(16), None, "the tag of chunk 9 was not requested"),
        ((3).to_bytes(8, "little") + bytes(16), 2, "the tag of chunk 3 was not requested"),
        (b"", 7, "tags up to chunk 7, which was not requested"),
    ],
)
def test_an_answer_that_was_not_requested_is_refused(tags: bytes, upto: int | None, message: str) -> None:
    answer = ChunkTags.of(PackedTags(tags, upto))
    with pytest.raises(RigError) as caught:
        answer.checked([(0, 4), (8, 1)])
    assert (caught.value.code, caught.value.message) == ("BadChecksums", message)
    good = ChunkTags.of(PackedTags((8).to_bytes(8, "little") + bytes(PACKED_BYTES - 8), None))
    assert good.checked([(0, 4), (8, 1)]).upto is None
