"""Layers behave like a bytearray on which the same operations are done."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.layer import OverlayLayer, RawLayer, merge_ranges
from tests.support.repo.examples import examples

SIZE = 40_000  # deliberately not a multiple of the block size
spans = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 9000)).map(lambda s: (s[0], min(s[1], SIZE - s[0])))
any_tmp = settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def base_file(path: Path) -> bytes:
    data = bytes(i * 7 % 251 for i in range(SIZE))
    path.write_bytes(data)
    return data


def check_ranges(data: bytes, ranges: list[tuple[int, int]]) -> None:
    """Check that the ranges are sorted, disjoint and within the disk, and that all bytes outside them are zeros."""
    at = 0
    for offset, length in ranges:
        assert offset >= at
        assert not any(data[at:offset])
        at = offset + length
    assert at <= len(data)
    assert not any(data[at:])


@pytest.mark.slow
@any_tmp
@given(st.lists(st.tuples(spans, st.booleans(), st.integers(1, 255)), max_size=12), spans)
def test_an_overlay_reads_as_a_byte_array_does(
    tmp_path: Path, ops: list[tuple[tuple[int, int], bool, int]], probe: tuple[int, int]
) -> None:
    for name in ("top", "top.present", "top.durable"):
        (tmp_path / name).unlink(missing_ok=True)
    model = bytearray(base_file(tmp_path / "base"))
    top = OverlayLayer(RawLayer(tmp_path / "base"), tmp_path / "top")
    for (offset, length), zero, value in ops:
        if zero:
            top.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            top.pwrite(offset, bytes([value]) * length)
            model[offset : offset + length] = bytes([value]) * length
    assert top.pread(*probe) == model[probe[0] : sum(probe)]
    top.sync()
    top.close()
    again = OverlayLayer(RawLayer(tmp_path / "base"), tmp_path / "top")
    assert again.pread(0, SIZE) == model
    check_ranges(bytes(model), again.data_ranges())
    again.close()
    assert (tmp_path / "base").read_bytes() == base_file(tmp_path / "base")


def test_an_overlay_grows_with_zeros(tmp_path: Path) -> None:
    data = base_file(tmp_path / "base")
    top = OverlayLayer(RawLayer(tmp_path / "base"), tmp_path / "top")
    top.pwrite(10, b"abc")
    top.resize(SIZE + 100_000)
    top.pwrite(SIZE + 99_990, b"end")
    assert top.pread(0, top.size_bytes) == data[:10] + b"abc" + data[13:] + bytes(99_990) + b"end" + bytes(7)
    top.close()


def test_an_overlay_smaller_than_its_backing_is_refused(tmp_path: Path) -> None:
    base_file(tmp_path / "base")
    (tmp_path / "top").write_bytes(bytes(10))
    with pytest.raises(RigError, match=f"the overlay has 10 bytes; allowed: at least the {SIZE} bytes"):
        OverlayLayer(RawLayer(tmp_path / "base"), tmp_path / "top")


def test_zeroing_a_raw_file_frees_its_space(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * (1 << 20))
    layer = RawLayer(tmp_path / "raw", writable=True)
    layer.zero(4096, (1 << 20) - 8192)
    assert layer.data_ranges() == [(0, 4096), ((1 << 20) - 4096, 4096)]
    assert layer.pread(0, 1 << 20) == b"x" * 4096 + bytes((1 << 20) - 8192) + b"x" * 4096
    layer.close()


def test_ranges_that_touch_are_joined() -> None:
    assert merge_ranges([(10, 5), (0, 4), (4, 2), (12, 10)]) == [(0, 6), (10, 12)]
