"""Decisions of fault rules: the same seed gives the same faults, and the shared vectors hold."""

from __future__ import annotations

import json
from statistics import mean, stdev

from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.fault_decisions import SEED_MAX, Turns
from tests.support import fault_vectors
from tests.support.repo.examples import examples

SEEDS = st.integers(0, SEED_MAX)


def test_the_generator_is_splitmix64() -> None:
    # The first outputs of splitmix64.c from state 0 and from state 1234567.
    assert [decisions.output(0, k) for k in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [decisions.output(1234567, k) for k in (1, 2)] == [6457827717110365317, 3203168211198807973]


def test_the_shared_vectors_hold() -> None:
    assert json.loads(fault_vectors.PATH.read_text()) == json.loads(json.dumps(fault_vectors.document()))
    assert fault_vectors.PATH.read_text() == fault_vectors.text()


def test_turns_are_counted_over_matching_operations() -> None:
    stream = decisions.stream_of(1, "rule")
    assert fault_vectors.fired(Turns(stream, occurrence=3)) == [3]
    assert fault_vectors.fired(Turns(stream, every=100)) == [100, 200, 300]
    assert fault_vectors.fired(Turns(stream, occurrence=5, every=100)) == [5, 105, 205]
    assert fault_vectors.fired(Turns(stream, occurrence=298, every=1)) == [298, 299, 300]
    assert fault_vectors.fired(Turns(stream, times=2)) == [1, 2]
    assert fault_vectors.fired(Turns(stream, threshold=0)) == []


def test_a_probability_is_met() -> None:
    pattern = Turns(decisions.stream_of(7, "rule"), threshold=decisions.threshold_of(0.25))
    assert 2350 < sum(pattern.fires(n, 0) for n in range(1, 10_001)) < 2650


@settings(max_examples=examples(100))
@given(SEEDS, st.text(max_size=8), st.text(max_size=8))
def test_streams_of_two_rules_differ(seed: int, one: str, other: str) -> None:
    assert (decisions.stream_of(seed, one) == decisions.stream_of(seed, other)) == (one == other)


@settings(max_examples=examples(100))
@given(SEEDS, st.integers(1, 1 << 40), st.integers(1, 1 << 64))
def test_a_choice_is_below_its_bound(stream: int, n: int, bound: int) -> None:
    assert 0 <= decisions.below(stream, n, 8, bound) < bound


def test_delays_have_the_mean_and_spread_of_their_distribution() -> None:
    stream, ms = decisions.stream_of(3, "slow"), 1_000_000
    uniform = [decisions.delay_ns(stream, n, 40 * ms, 10 * ms, "uniform") / ms for n in range(1, 3000)]
    assert 30 <= min(uniform) < 31
    assert 49 < max(uniform) <= 50
    normal = [decisions.delay_ns(stream, n, 40 * ms, 10 * ms, "normal") / ms for n in range(1, 3000)]
    assert 39 < mean(normal) < 41
    assert 9.5 < stdev(normal) < 10.5
    pareto = [decisions.delay_ns(stream, n, 40 * ms, 10 * ms, "pareto") / ms for n in range(1, 3000)]
    assert min(pareto) >= 40
    assert 48 < mean(pareto) < 52
    assert max(pareto) > 100


def test_a_delay_is_never_negative() -> None:
    for distribution in ("uniform", "normal", "pareto"):
        assert all(decisions.delay_ns(5, n, 0, 1000, distribution) >= 0 for n in range(1, 500))


@settings(max_examples=examples(100))
@given(SEEDS, st.integers(1, 100), st.integers(1, 5000), st.integers(1, 64))
def test_flipped_bits_are_different_bits_of_the_range(stream: int, n: int, range_bits: int, bits: int) -> None:
    found = decisions.flipped_bits(stream, n, range_bits, bits)
    assert len(set(found)) == len(found) == min(bits, range_bits)
    assert all(0 <= bit < range_bits for bit in found)


@settings(max_examples=examples(200))
@given(SEEDS, st.integers(1, 100), st.integers(1, 40_000), st.none() | st.integers(2, 9))
def test_a_torn_write_loses_a_part(stream: int, n: int, length: int, parts: int | None) -> None:
    kept = decisions.torn_ranges(stream, n, length, parts=parts)
    assert sum(end - start for start, end in kept) < length
    assert all(start % 512 == 0 and (end % 512 == 0 or end == length) for start, end in kept)


def test_the_kept_parts_of_a_torn_write_are_those_of_the_rule() -> None:
    assert decisions.torn_ranges(0, 1, 4096, parts=4, keep=[3, 1]) == [(0, 1024), (2048, 3072)]
    assert decisions.torn_ranges(0, 1, 1000, parts=8, keep=[1, 2, 5]) == [(0, 512), (512, 1000)]
    assert decisions.torn_ranges(0, 1, 9000, sizes=[4096, 3600, 1260], keep=[1, 3]) == [(0, 4096), (7696, 9000)]
    assert decisions.torn_ranges(0, 1, 5000, sizes=[4096, 3600, 1260], keep=[2, 3]) == [(4096, 5000)]
