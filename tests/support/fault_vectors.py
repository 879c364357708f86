"""The shared test vectors of fault decisions: seeds, patterns, and the operations that meet a fault.

``python -m tests.support.fault_vectors`` writes tests/vectors/fault_decisions.json.  The file is the contract between the
Python and the C implementation: a change of it changes the faults of every seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.fault_decisions import ALWAYS, UNLIMITED, Turns

PATH = Path(__file__).parent.parent / "vectors" / "fault_decisions.json"
STREAMS = [(0, ""), (0, "a"), (4711, "web01 loses its journal"), (1, "z\u00fcrich"), (decisions.SEED_MAX, "b" * 40)]
PATTERNS: list[dict[str, Any]] = [
    {},
    {"times": 3},
    {"occurrence": 3},
    {"every": 4},
    {"occurrence": 5, "every": 1, "times": 2},
    {"occurrence": 2, "every": 7},
    {"probability": 0.5},
    {"probability": 0.01, "times": 2},
    {"probability": 0.1, "every": 2, "occurrence": 9, "times": 5},
    {"probability": 0.0},
    {"probability": 1.0, "times": 0},
]
OPERATIONS = 300
BOUNDS = [1, 2, 8, 512, 4096, 1_000_003, (1 << 64) - 1]
FLIPS = [(4096, 1), (4096, 3), (8, 8), (3, 64), (1, 1), (1 << 40, 2)]
TEARS: list[tuple[int, dict[str, Any]]] = [
    (4096, {}),
    (4096, {"parts": 4}),
    (65536, {"parts": 3, "keep": [1, 3]}),
    (1000, {"parts": 8, "keep": [1, 2, 5]}),
    (9000, {"sizes": [4096, 3600, 1260], "keep": [1, 3]}),
    (700, {"sizes": [512, 512]}),
]
DELAYS = [(40_000_000, 10_000_000), (1_000, 5_000), (0, 1), (3_600_000_000_000, 3_600_000_000_000)]


def turns(stream: int, pattern: dict[str, Any]) -> Turns:
    """Return the counting part of a rule with this pattern."""
    chance = pattern.get("probability")
    return Turns(
        stream=stream,
        occurrence=pattern.get("occurrence", 0),
        every=pattern.get("every", 0),
        threshold=ALWAYS if chance is None else decisions.threshold_of(chance),
        times=pattern.get("times", UNLIMITED),
    )


def fired(pattern: Turns) -> list[int]:
    """Return the numbers of the operations that meet a fault."""
    found: list[int] = []
    for n in range(1, OPERATIONS + 1):
        if pattern.fires(n, len(found)):
            found.append(n)
    return found


def document() -> dict[str, Any]:
    """Return the whole file; numbers of 64 bits are hexadecimal texts."""
    streams = [(seed, name, decisions.stream_of(seed, name)) for seed, name in STREAMS]
    return {
        "about": "written by python -m tests.support.fault_vectors; blockfs/core/fault_decisions.py has the arithmetic",
        "streams": [
            {
                "seed": seed,
                "name": name,
                "stream": f"{stream:#018x}",
                "outputs": [f"{decisions.output(stream, k):#018x}" for k in range(1, 9)],
                "draws_of_2": [f"{decisions.draw(stream, 2, j):#018x}" for j in range(1, 9)],
            }
            for seed, name, stream in streams
        ],
        "operations": OPERATIONS,
        "decisions": [
            {"stream": f"{stream:#018x}"}
            | {key: value for key, value in pattern.items() if key != "probability"}
            | {"threshold": f"{turns(stream, pattern).threshold:#018x}", "fired": fired(turns(stream, pattern))}
            for _, _, stream in streams
            for pattern in PATTERNS
        ],
        "choices": [
            {"stream": f"{stream:#018x}", "n": n, "j": 8, "bound": f"{bound:#x}"}
            | {"chosen": f"{decisions.below(stream, n, 8, bound):#x}"}
            for _, _, stream in streams
            for n, bound in enumerate(BOUNDS, 1)
        ],
        "flips": [
            {"stream": f"{stream:#018x}", "n": n, "range_bits": range_bits, "bits": bits}
            | {"flipped": decisions.flipped_bits(stream, n, range_bits, bits)}
            for _, _, stream in streams
            for n, (range_bits, bits) in enumerate(FLIPS, 1)
        ],
        "tears": [
            {"stream": f"{stream:#018x}", "n": n, "length": length}
            | torn
            | {"kept": decisions.torn_ranges(stream, n, length, **torn)}
            for _, _, stream in streams
            for n, (length, torn) in enumerate(TEARS, 1)
        ],
        "delays": [
            {"stream": f"{stream:#018x}", "n": n, "delay_ns": delay, "jitter_ns": jitter, "distribution": distribution}
            | {"result_ns": decisions.delay_ns(stream, n, delay, jitter, distribution)}
            for _, _, stream in streams
            for distribution in ("uniform", "normal", "pareto")
            for delay, jitter in DELAYS
            for n in (1, 2, 3)
        ],
    }


def text() -> str:
    """Return the file as text, one case in a line."""
    lines = []
    for key, value in document().items():
        if isinstance(value, list):
            lines.append(f" {json.dumps(key)}: [\n" + ",\n".join(f"  {json.dumps(case)}" for case in value) + "\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text())
