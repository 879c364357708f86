"""Sizes, durations, rates and shifts are read in one place, and written so that they read as the same number."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.blockfs.documents import quantities as q
from tests.support.repo.examples import examples

KINDS: list[tuple[Callable[[str], int], Callable[[int], str], st.SearchStrategy[int]]] = [
    (q.parse_bytes, q.bytes_text, st.integers(0, (1 << 63) - 1)),
    (q.parse_duration, q.duration_text, st.integers(0, q.DURATION_MAX_NS)),
    (q.parse_rate, q.rate_text, st.integers(1, (1 << 63) - 1)),
    (q.parse_byte_shift, q.byte_shift_text, st.integers(-(1 << 63) + 1, (1 << 63) - 1).filter(bool)),
    (q.parse_time_shift, q.time_shift_text, st.integers(-q.DURATION_MAX_NS, q.DURATION_MAX_NS).filter(bool)),
    (q.parse_drift, q.drift_text, st.integers(-999_999, 10**9).filter(bool)),
]


@settings(max_examples=examples(200))
@given(st.data())
def test_a_written_quantity_reads_as_the_same_number(data: st.DataObject) -> None:
    read, write, numbers = data.draw(st.sampled_from(KINDS))
    number = data.draw(numbers)
    assert read(write(number)) == number


@pytest.mark.parametrize(
    ("read", "text", "number"),
    [
        (q.parse_bytes, "64KiB", 65536),
        (q.parse_bytes, "1.5 k", 1536),
        (q.parse_bytes, "0", 0),
        (q.parse_duration, "40ms", 40_000_000),
        (q.parse_duration, "1.5s", 1_500_000_000),
        (q.parse_duration, "2h", 7200 * 10**9),
        (q.parse_rate, "2MiB/s", 2 << 20),
        (q.parse_byte_shift, "+8KiB", 8192),
        (q.parse_byte_shift, "-512", -512),
        (q.parse_time_shift, "-30s", -30 * 10**9),
        (q.parse_drift, "+200ppm", 200),
        (q.parse_drift, "-1%", -10_000),
    ],
)
def test_quantities_are_understood(read: Callable[[str], int], text: str, number: int) -> None:
    assert read(text) == number


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (q.parse_bytes, "64 sheep", "size '64 sheep' is not understood: write a number and KiB, MiB, GiB or TiB"),
        (q.parse_bytes, "0.3B", "size '0.3B' is no whole number of bytes"),
        (q.parse_bytes, "9000000TiB", "at most 9223372036854775807 are allowed"),
        (q.parse_duration, "40", "duration '40' is not understood: write a number and ns, us, ms, s, m, h or d"),
        (q.parse_duration, "4000d", "at most"),
        (q.parse_rate, "2MiB", "rate '2MiB' is not understood: write a size above 0 and /s, like 2MiB/s"),
        (q.parse_rate, "0/s", "rate '0/s' is not understood"),
        (q.parse_byte_shift, "8KiB", "shift '8KiB' has no sign: write it like +8KiB or -512B"),
        (q.parse_byte_shift, "+0", "shift '+0' is 0"),
        (q.parse_time_shift, "1h", "shift '1h' has no sign: write it like +1h or -30s"),
        (q.parse_drift, "-100%", "above -100%"),
        (q.parse_drift, "+5", "drift '+5' is not understood"),
    ],
)
def test_a_wrong_quantity_is_named_with_the_allowed_form(read: Callable[[str], int], text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(text)
