"""Random fault rules that the schema allows, for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from siterig.scenarios.faults import fitting
from siterig.scenarios.faults.catalog import EFFECTS, LAYER_NAMES, LAYERS, PARTS, LayerName, effects_of
from siterig.scenarios.faults.moment_names import event_names

_TEXTS = st.text(
    st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters="\x85\xa0"), min_size=1, max_size=12
)
TEXTS = _TEXTS.filter(lambda text: text.isprintable())
PATTERNS = st.one_of(st.sampled_from(["web01", "*", "web0[12]", "write", "a/b", "x=y", "-v", "it's"]), TEXTS)
SIZES = st.one_of(st.integers(1, 1 << 50), st.sampled_from(["64KiB", "1.5MiB", "512B", "4096"]))
DURATIONS = st.one_of(st.integers(0, 10**12).map(lambda ns: f"{ns}ns"), st.sampled_from(["40ms", "1.5s", "2h"]))
COUNTS = st.integers(1, 1 << 40)
PLACES: dict[str, st.SearchStrategy[Any]] = {
    "vm": PATTERNS,
    "disk": PATTERNS,
    "host": st.sampled_from(["site", "azure"]),
    "role": PATTERNS,
    "link": PATTERNS,
    "stream": st.sampled_from(["upstream", "downstream", "both"]),
    "blob": PATTERNS,
    "start": SIZES,
    "length": SIZES,
}
TRIGGERS = st.one_of(
    st.tuples(st.sampled_from(sorted(event_names())), st.sampled_from(["", "/web01", "/*"])).map(
        lambda parts: f"event:{''.join(parts)}"
    ),
    st.integers(0, 1 << 50).map(lambda number: f"position:{number}"),
    DURATIONS.map(lambda text: f"time:{text}"),
    st.sampled_from(["mark:armed", "fault:another"]),
)
MOMENTS: dict[str, st.SearchStrategy[Any]] = {
    "after": TRIGGERS,
    "until": TRIGGERS,
    "for": DURATIONS,
    "occurrence": COUNTS,
    "every": COUNTS,
    "probability": st.floats(0.001, 1),
    "times": COUNTS,
    "while_file": TEXTS,
    "timing": st.sampled_from(["before", "after"]),
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "delay": DURATIONS,
    "jitter": DURATIONS,
    "distribution": st.sampled_from(["uniform", "normal", "pareto"]),
    "rate": st.integers(1, 1 << 50).map(lambda rate: f"{rate}/s"),
    "iops": COUNTS,
    "truncate": SIZES,
    "tear": st.one_of(
        st.just(True),
        st.just({"parts": 4, "keep": [1, 3]}),
        st.just({"sizes": [4096, "1KiB"], "keep": [2]}),
        st.integers(2, 100).map(lambda parts: {"parts": parts}),
    ),
    "misdirect": st.sampled_from(["+8KiB", "-512", "+1B"]),
    "flip": st.one_of(st.just(True), st.integers(1, 64).map(lambda bits: {"bits": bits})),
    "full_after": SIZES,
    "lose": st.just("unflushed"),
    "crash": st.booleans(),
    "survive": st.sampled_from(["random", [1, 4], [2]]),
    "connection": st.sampled_from(["reset", "refuse", "black-hole", "slow-close", "half-open"]),
    "close_after": DURATIONS,
    "cut_after": SIZES,
    "account": st.sampled_from(["key-rotated", "container-deleted", "account-deleted"]),
    "kill": st.sampled_from(["SIGKILL", "term", "9"]),
    "files_max": COUNTS,
    "memory_max": SIZES,
    "jump": st.sampled_from(["+1h", "-90s"]),
    "skew": st.sampled_from(["+1h", "-90s"]),
    "drift": st.sampled_from(["+200ppm", "-1%"]),
    "power": st.sampled_from(["loss", "reboot", "off"]),
    "resize": st.just("2GiB"),
    "mark": TEXTS,
}
ERRNOS = st.sampled_from(["EIO", "ENOSPC", "ETIMEDOUT"])
HTTP = st.one_of(
    st.integers(300, 599),
    st.fixed_dictionaries({"status": st.integers(300, 599)}, optional={"code": TEXTS, "retry_after": st.integers(0, 99)}),
)
FIRED = st.sampled_from(["any", ">=1", 1, "==1", "<=5", "0..7"])


def value_of(key: str, layer: LayerName) -> st.SearchStrategy[Any]:
    """Return the values of a key of ``what``."""
    if key == "error":
        return HTTP if layer == "blob" else ERRNOS
    return VALUES.get(key, st.just(True))


@st.composite
def raw_rules(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a rule as a mapping; most of them are allowed, and some do not fit together."""
    layer: LayerName = draw(st.sampled_from(LAYER_NAMES))
    effects = [key for key in effects_of(layer) if not EFFECTS[key].needs]
    keys: set[str] = {draw(st.sampled_from(effects))}
    keys |= set(draw(st.lists(st.sampled_from([key for key in ("delay", "mark") if key in effects]), max_size=1)))
    qualifiers = [key for key in effects_of(layer) if set(EFFECTS[key].needs) & keys]
    keys |= set(draw(st.lists(st.sampled_from(qualifiers), max_size=2))) if qualifiers else set()
    what = {key: draw(value_of(key, layer)) for key in effects_of(layer) if key in keys}
    where: dict[str, Any] = {"layer": layer}
    for key in LAYERS[layer].places:
        if key == "part" and draw(st.booleans()):
            where[key] = draw(st.sampled_from(PARTS[layer]))
        elif key in PLACES and (draw(st.booleans()) or "resize" in keys or "delete" in keys):
            where[key] = draw(PLACES[key])
    possible = fitting.possible_operations(layer, fitting.main_effects(tuple(what)))
    with_op = bool(possible) and draw(st.booleans())
    if with_op:
        where["op"] = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=3, unique=True))
    chosen = [key for key in MOMENTS if draw(st.integers(0, 3)) == 0]
    rule: dict[str, Any] = {"where": where, "what": what, "when": {key: draw(MOMENTS[key]) for key in chosen}}
    if draw(st.booleans()):
        rule["expect"] = {"fired": draw(FIRED)}
    if draw(st.booleans()):
        rule["name"] = draw(TEXTS)
    if draw(st.booleans()):
        rule["seed"] = draw(st.integers(0, (1 << 63) - 1))
    return rule
