"""The C core keeps its order: rooms include and call only the ones below, and no two files need each other."""

from __future__ import annotations

import graphlib
from collections.abc import Callable

import pytest

from siterig.cext.build_cext import HEADERS, SOURCE_ROOT, SOURCES
from tests.support.repo import c_rooms

LINES_MAX = 600


def test_every_c_room_includes_and_calls_exactly_the_rooms_in_the_table() -> None:
    assert c_rooms.room_uses(c_rooms.files()) == c_rooms.allowed()


def test_no_c_room_uses_one_that_uses_it() -> None:
    graphlib.TopologicalSorter(c_rooms.allowed()).prepare()


def test_no_two_c_files_include_or_call_each_other() -> None:
    graphlib.TopologicalSorter(c_rooms.uses(c_rooms.files())).prepare()


def test_functions_that_other_c_files_can_call_have_our_prefix() -> None:
    found = c_rooms.functions(c_rooms.files())
    assert len(found) > 150, "the functions were not found in the text"
    assert {name: file for name, file in found.items() if not name.startswith("sr_")} == {}


def test_no_c_file_has_become_two() -> None:
    assert {name: n for name, text in c_rooms.files().items() if (n := len(text.splitlines())) > LINES_MAX} == {}


def test_all_that_is_in_the_c_rooms_is_built() -> None:
    assert [p.relative_to(SOURCE_ROOT).as_posix() for p in SOURCES] == [n for n in c_rooms.files() if n.endswith(".c")]
    assert set(HEADERS) < set(c_rooms.files())


EXAMPLE = {
    "base/io.h": "#include <stdint.h>\n\nint sr_io_read(int fd);\n",
    "base/io.c": '#include "base/io.h"\n\n/* A read of sr_disk_new() */\nint sr_io_read(int fd)\n{\n\treturn fd;\n}\n',
    "disk/disk.h": "struct sr_disk;\nstruct sr_disk *sr_disk_new(int fd);\n",
    "disk/disk.c": '#include "disk/disk.h"\n\n#include "base/io.h"\n\n'
    "static int sr_ready(void)\n{\n\treturn 1;\n}\n\n"
    "struct sr_disk *sr_disk_new(int fd)\n{\n\treturn sr_ready() && sr_io_read(fd) ? 0 : 0;\n}\n",
}


def add(name: str, text: str) -> Callable[[dict[str, str]], None]:
    def change(sources: dict[str, str]) -> None:
        sources[name] = sources.get(name, "") + text

    return change


def test_rooms_that_follow_the_table_are_read_correctly() -> None:
    assert c_rooms.functions(EXAMPLE) == {"sr_io_read": "base/io.c", "sr_disk_new": "disk/disk.c"}
    assert c_rooms.room_uses(EXAMPLE) == {"base": set(), "disk": {"base"}}
    graphlib.TopologicalSorter(c_rooms.uses(EXAMPLE)).prepare()


@pytest.mark.parametrize(
    "change",
    [
        add("base/io.c", '#include "disk/disk.h"\n'),
        add("base/io.c", "void *sr_disk_new(int fd);\nvoid *sr_any(void)\n{\n\treturn sr_disk_new(1);\n}\n"),
        add("base/io.c", "void *sr_disk_new(int fd);\nstatic void *(*const table[])(int) = {sr_disk_new};\n"),
        add("base/io.h", "static inline void *sr_any(void)\n{\n\treturn sr_disk_new(1);\n}\n"),
    ],
    ids=["an include", "a call", "an address in a table", "a call in a header"],
)
def test_a_step_backwards_is_found(change: Callable[[dict[str, str]], None]) -> None:
    sources = dict(EXAMPLE)
    change(sources)
    assert c_rooms.room_uses(sources)["base"] == {"disk"}


@pytest.mark.parametrize(
    "change",
    [
        add("disk/disk.h", '#include "disk/log.h"\n'),
        add("disk/disk.c", "void *sr_log_new(void);\nvoid *sr_any(void)\n{\n\treturn sr_log_new();\n}\n"),
    ],
    ids=["headers", "calls"],
)
def test_a_circle_within_a_room_is_found(change: Callable[[dict[str, str]], None]) -> None:
    sources = dict(EXAMPLE)
    add("disk/log.h", '#include "disk/disk.h"\nvoid *sr_log_new(void);\n')(sources)
    add("disk/changelog.c", '#include "disk/log.h"\nvoid *sr_log_new(void)\n{\n\treturn sr_disk_new(1);\n}\n')(sources)
    graphlib.TopologicalSorter(c_rooms.uses(sources)).prepare()
    change(sources)
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(c_rooms.uses(sources)).prepare()
