"""Tables fit a terminal without breaking an id, a time or a word, and are one line a row elsewhere."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siterig.blockfs.core.printable import printable
from siterig.blockfs.core.short_ids import shortened
from siterig.cli import tables
from tests.support.screens import text_of

POINTS = ("id", "type", "time", "position", "name")
IDS = ("0d2c7d1e-9f1b-4f3a-8a41-0f6f4c8f2b11", "0d2c7d1e-1111-4f3a-8a41-0f6f4c8f2b12")
ROWS = [
    (IDS[0], "ApplicationConsistent", "2026-11-21T22:13:17.123456Z", 4711, "before the upgrade"),
    (IDS[1], "CrashConsistent", "2026-11-21T22:13:47.000001Z", 12, "scheduled"),
]


def fitted(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> list[str]:
    return [text_of(line) for line in tables.fitted(columns, rows, width)]


def piped(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [text_of(line) for line in tables.piped(columns, rows)]


@pytest.mark.parametrize(("size", "shown"), [(-27, "2026-11-21T22:13:17.123456Z"), (-20, "2026-11-21T22:13:17Z")])
def test_a_time_in_a_fixed_column_has_its_fraction_if_it_fits(size: int, shown: str) -> None:
    row = tables.aligned((3, "2026-11-21T22:13:17.123456Z", "WRITE"), (4, size, -5))
    assert text_of(row) == f"   3 {shown} WRITE"


def test_a_table_that_fits_is_whole_and_aligned() -> None:
    assert fitted(("VM", "state"), [("web01", "Protected"), ("db", "-")], 80) == [
        "VM     state",
        "web01  Protected",
        "db     -",
    ]


def test_points_fit_80_columns_with_short_ids_that_are_unique() -> None:
    lines = fitted(POINTS, ROWS, 80)
    assert max(map(len, lines)) <= 80
    assert lines == [
        "id          type                   time                  position  name",
        "0d2c7d1e-9  ApplicationConsistent  2026-11-21T22:13:17Z  4711      before the",
        " " * 67 + "upgrade",
        "0d2c7d1e-1  CrashConsistent        2026-11-21T22:13:47Z  12        scheduled",
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
def test_no_id_time_or_word_is_broken_at_any_width(width: int) -> None:
    lines = fitted(POINTS, ROWS, width)
    words = " ".join(lines).replace(";", " ").split()
    for word in ("ApplicationConsistent", "CrashConsistent", "4711", "before", "upgrade", "scheduled"):
        assert word in words, lines
    assert sum(word.startswith("2026-11-21T22:13:") and word.endswith("Z") for word in words) == 2
    assert sum(word.startswith("0d2c7d1e-") for word in words) == 2
    longest = max(map(len, words))
    assert max(map(len, lines)) <= max(width, longest + 2 * len(tables.INDENT))


def test_40_columns_have_a_line_for_each_value() -> None:
    assert fitted(POINTS, ROWS[1:], 40) == [
        "id: 0d2c7d1e",
        "type: CrashConsistent",
        "time: 2026-11-21T22:13:47Z",
        "position: 12",
        "name: scheduled",
    ]


def test_a_long_path_moves_below_its_row_and_only_there() -> None:
    path = "/root/.local/state/siterig/site/mnt/web01/a-disk-with-a-long-name.img"
    lines = fitted(("VM", "side", "file"), [("web01", "site", path), ("db", "site", "/short")], 60)
    assert lines == ["VM     side  file", "web01  site", "  file:", f"    {path}", "db     site  /short"]


def test_words_of_the_last_column_are_wrapped_below_each_other() -> None:
    assert fitted(("check", "found"), [("space", "12 GiB at /rig, of which 10 are wanted by a drill")], 40) == [
        "check  found",
        "space  12 GiB at /rig, of which 10 are",
        "       wanted by a drill",
    ]


def test_values_without_room_move_below_and_empty_columns_are_omitted() -> None:
    columns = ("disk", "side", "size", "tracked", "generation", "unsent log", "dirty", "needs resync", "hydration")
    full = ("web01/data", "site", "16 MiB", "no", 3, "1.5 MiB of 32 MiB", "33 MiB", "LogOverflow", "35 %")
    bare = ("web01/os", "site", "64 MiB", "yes", 1, "457 B of 32 MiB", "-", "-", "-")
    assert fitted(columns, [bare], 80) == [
        "disk      side  size    tracked  generation  unsent log",
        "web01/os  site  64 MiB  yes      1           457 B of 32 MiB",
    ]
    assert fitted(columns, [full, bare], 80) == [
        "disk        side  size    tracked  generation  unsent log         dirty",
        "web01/data  site  16 MiB  no       3           1.5 MiB of 32 MiB  33 MiB",
        "  needs resync: LogOverflow; hydration: 35 %",
        "web01/os    site  64 MiB  yes      1           457 B of 32 MiB    -",
    ]


def test_in_a_pipe_a_row_is_a_line_of_whole_values_without_padding() -> None:
    lines = piped(POINTS, ROWS)
    assert lines[0] == "\t".join(POINTS)
    assert lines[1].split("\t") == [str(value) for value in ROWS[0]]
    assert not any("  " in line for line in lines)


def test_an_empty_value_is_a_dash_and_a_tab_in_a_value_is_no_separator() -> None:
    assert piped(("a", "b"), [("", "x\ty\nz\x1b[31m\u202e\udcff")]) == ["a\tb", "-\tx\\ty\\nz\\x1b[31m\\u202e\\xff"]


@pytest.mark.slow
@given(st.lists(st.lists(st.text(max_size=50), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(20, 120))
def test_all_values_of_a_table_are_in_its_lines_and_every_line_is_printable(rows: list[list[str]], width: int) -> None:
    lines = fitted(("one", "two", "three"), rows, width)
    assert all(line.isprintable() for line in lines)
    shown = re.sub(r"\s+", "", "".join(lines))
    # Where there is little room, a column without values is left out.
    empty = {n for n in (1, 2) if all(printable(row[n]) in ("", "-") for row in rows)}
    for row in rows:
        for cell in [cell for n, cell in enumerate(row) if n not in empty]:
            assert re.sub(r"\s+", "", printable(cell)) in shown


def test_ids_are_shortened_to_unique_beginnings() -> None:
    names = [str(uuid.UUID(int=number << 92)) for number in range(300)]
    short = shortened(names)
    assert len(set(short.values())) == len(names)
    for name, prefix in short.items():
        assert [other for other in names if other.startswith(prefix)] == [name]
