"""The steps at which one run of an exhaustive test kills: a sample that changes with the seed, or all.

The steps of such a test are mostly alike: a hundred writes, a hundred syncs.  A run takes the first and the last step,
one of each kind, and as many others as make two fifths of all.  Successive runs take other ones.
``SITERIG_ALL_STEPS=1`` takes all; ``SITERIG_SEED``, which a run prints, repeats the choice.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

SEED = int(os.environ.get("SITERIG_SEED") or random.randrange(1 << 32))
ALL = os.environ.get("SITERIG_ALL_STEPS", "0") != "0"
_SHARE = 0.4


def some_steps(kinds: Sequence[str]) -> list[int]:
    """Return the numbers of the steps to kill at, in order; ``kinds`` has the kind of each step."""
    numbers = range(len(kinds))
    if ALL:
        return list(numbers)
    print(f"replay with SITERIG_SEED={SEED}, or all steps with SITERIG_ALL_STEPS=1")
    dice = random.Random(f"{SEED} {len(kinds)}")
    shuffled = dice.sample(numbers, len(kinds))
    of_kind = {kinds[number]: number for number in shuffled}
    chosen = {*of_kind.values(), *numbers[:1], *numbers[-1:]}
    for number in shuffled:
        if len(chosen) >= _SHARE * len(kinds):
            break
        chosen.add(number)
    return sorted(chosen)
