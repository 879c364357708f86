"""The random choices of fault rules, in integers only, so that Python and the C core decide in the same way.

``tests/vectors/fault_decisions.json`` has seeds and decisions; the tests of both languages read it.  All arithmetic is
modulo 2**64 unless a product is marked as 128 bits.  No number is rounded after the rule was read.

**Generator.**  SplitMix64 (Steele, Lea, Flood, OOPSLA 2014; the constants of Vigna's splitmix64.c)::

    GAMMA = 0x9e3779b97f4a7c15
    mix(z): z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
            z = (z ^ (z >> 27)) * 0x94d049bb133111eb
            return z ^ (z >> 31)
    output(state, k) = mix(state + k * GAMMA)         the k-th output of a generator that starts at state; k is 1, 2, ...

An output is computed from its number, without the outputs before it: threads need no lock, and no order.

**Stream of a rule.**  ``hash`` is FNV-1a with 64 bits over the rule's name in UTF-8 (offset 0xcbf29ce484222325, prime
0x100000001b3).  The stream depends on seed and name alone, so other rules change nothing::

    stream = mix(seed + mix(hash))

**Order of decisions** for one rule and one operation.  The first "no" ends it:

1. *Place*: layer, VM, disk, operation and byte range match the rule's ``where``.
2. *Window*: the rule is armed; ``after`` has happened, ``until`` has not, ``for`` has not passed, ``while_file`` exists.
3. The operation is counted: ``n = ++matched``; n is 1, 2, ...  An operation outside the window is not counted.
4. *Turn*: ``occurrence`` alone: ``n == occurrence``.  ``every`` alone: ``n % every == 0``.  Both: ``n >= occurrence`` and
   ``(n - occurrence) % every == 0``.  Neither: always.
5. *Probability*: ``(output(stream, n) >> 11) < threshold``, where ``threshold = floor(probability * 2**53)``.  Without a
   probability the threshold is 2**53, which is always true.
6. *Times*: ``fired < times``; then ``++fired``.  Without ``times`` always.

Threads that decide at the same time draw n by an atomic increment, and take a place among ``times`` by compare and swap.

**Choices of a fault that fires** (a bit, a block, a delay).  The j-th choice of the n-th operation, j is 1, 2, ...::

    draw(n, j)         = output(output(stream, n), j)
    below(n, j, bound) = (draw(n, j) * bound) >> 64           product of 128 bits; 0 <= result < bound

**Delays.**  ``delay`` and ``jitter`` are nanoseconds, ``>>`` of a negative number rounds down; a result below 0 is 0:

- ``uniform``: ``delay - jitter + below(n, 1, 2 * jitter + 1)``
- ``normal``, with ``jitter`` as standard deviation: s is the sum of the high and the low 32 bits of ``draw(n, 1)`` to
  ``draw(n, 6)``, twelve numbers; ``delay + (((s - 6 * 2**32) * jitter) >> 32)``, product of 128 bits, signed
- ``pareto``, with ``jitter`` as the mean of the addition (shape 2): r is the integer square root of ``draw(n, 1)``, or 1
  if that is 0; ``delay + min(((2**32 - r) * jitter) // r, 64 * jitter)``, product of 128 bits

The first choices belong to the delay: other choices of the same fault use j = 8 and above.

**Flipped bits.**  A range of R bits is divided into ``bits`` parts; bit i, from 0, is in part i, so no bit is drawn twice::

    from = i * R // bits; upto = (i + 1) * R // bits; bit = from + below(n, 8 + i, upto - from)

**Torn writes.**  A write of B bytes has ``units = ceil(B / 512)``.  ``parts`` equal ones: there are ``min(parts, units)``,
and part i, from 0, ends at unit ``(i + 1) * units // parts``.  Without ``parts`` and ``sizes`` each unit is a part.  The
last part has the rest.  Without ``keep`` one part at least is lost::

    lost = below(n, 8, parts); part i is kept if i != lost and (draw(n, 9 + i) & 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Distribution = Literal["uniform", "normal", "pareto"]
ALWAYS = 1 << 53
"""The threshold of a rule without a probability."""
FIRST_CHOICE = 8
"""The number of the first choice that is not the delay's."""
TEAR_UNIT_BYTES = 512
"""Equal parts of a torn write end at multiples of it."""
UNLIMITED = (1 << 64) - 1
"""The value of ``times`` that stands for no limit."""
SEED_MAX = (1 << 63) - 1
"""The largest seed: TOML and JSON readers know signed numbers only."""
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_PARETO_MAX = 64


def mix(z: int) -> int:
    """Return the output function of SplitMix64 for a state of 64 bits."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def output(state: int, k: int) -> int:
    """Return the k-th output, from 1, of a SplitMix64 generator that starts at this state."""
    return mix((state + k * _GAMMA) & _MASK)


def stream_of(seed: int, name: str) -> int:
    """Return the start of the stream of the rule with this name."""
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = (hashed ^ byte) * 0x100000001B3 & _MASK
    return mix((seed + mix(hashed)) & _MASK)


def threshold_of(probability: float) -> int:
    """Return the threshold of a probability from 0 to 1."""
    return int(probability * ALWAYS)


def draw(stream: int, n: int, j: int) -> int:
    """Return the j-th choice, a number of 64 bits, for the n-th matching operation."""
    return output(output(stream, n), j)


def below(stream: int, n: int, j: int, bound: int) -> int:
    """Return the j-th choice for the n-th matching operation as a number from 0 to ``bound - 1``."""
    return draw(stream, n, j) * bound >> 64


def delay_ns(stream: int, n: int, delay: int, jitter: int, distribution: Distribution) -> int:
    """Return the delay in nanoseconds of the n-th matching operation."""
    if not jitter:
        return delay
    if distribution == "uniform":
        return max(0, delay - jitter + below(stream, n, 1, 2 * jitter + 1))
    if distribution == "normal":
        drawn = [draw(stream, n, j) for j in range(1, 7)]
        total = sum((value >> 32) + (value & 0xFFFFFFFF) for value in drawn)
        return max(0, delay + ((total - (6 << 32)) * jitter >> 32))
    root = math.isqrt(draw(stream, n, 1)) or 1
    return delay + min(((1 << 32) - root) * jitter // root, _PARETO_MAX * jitter)


def flipped_bits(stream: int, n: int, range_bits: int, bits: int) -> list[int]:
    """Return the bits of a range, from 0, that the n-th matching operation finds inverted."""
    count = min(bits, range_bits)
    ends = [i * range_bits // count for i in range(count + 1)] if count else []
    return [ends[i] + below(stream, n, FIRST_CHOICE + i, ends[i + 1] - ends[i]) for i in range(count)]


def torn_ranges(
    stream: int,
    n: int,
    length: int,
    *,
    parts: int | None = None,
    sizes: Sequence[int] | None = None,
    keep: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """Return the ranges, start and end in bytes, of a torn write that reach the disk.

    Args:
        stream: the start of the rule's random stream.
        n: the number of the matching operation.
        length: bytes of the write, at least 1.
        parts: number of equal parts; None if the rule has none.
        sizes: sizes of the parts in bytes; None if the rule has none.
        keep: numbers of the kept parts, from 1; None if the seed chooses.
    """
    units = -(-length // TEAR_UNIT_BYTES)
    if sizes:
        ends = [min(sum(sizes[: i + 1]), length) for i in range(len(sizes))]
    else:
        count = min(parts or units, units)
        ends = [(i + 1) * units // count * TEAR_UNIT_BYTES for i in range(count)]
    ends[-1] = length
    if keep is None:
        lost = below(stream, n, FIRST_CHOICE, len(ends))
        kept = [i for i in range(len(ends)) if i != lost and draw(stream, n, FIRST_CHOICE + 1 + i) & 1]
    else:
        kept = [i - 1 for i in sorted(set(keep)) if i <= len(ends)]
    ranges = [(ends[i - 1] if i else 0, ends[i]) for i in kept]
    return [(start, end) for start, end in ranges if start < end]


@dataclass(frozen=True, slots=True)
class Turns:
    """The counting part of a rule, as the C core gets it: five numbers of 64 bits.

    Args:
        stream: the start of the rule's random stream.
        occurrence: the number of the first matching operation that fires; 0 if the rule has none.
        every: the distance between operations that fire; 0 if the rule has none.
        threshold: the probability times 2**53, or ``ALWAYS``.
        times: how often the rule fires at most, or ``UNLIMITED``.
    """

    stream: int
    occurrence: int = 0
    every: int = 0
    threshold: int = ALWAYS
    times: int = UNLIMITED

    def fires(self, n: int, fired: int) -> bool:
        """Return True if the n-th matching operation, from 1, meets a fault after ``fired`` faults."""
        if self.occurrence and self.every:
            turn = n >= self.occurrence and (n - self.occurrence) % self.every == 0
        elif self.occurrence:
            turn = n == self.occurrence
        else:
            turn = not self.every or n % self.every == 0
        return turn and output(self.stream, n) >> 11 < self.threshold and fired < self.times
