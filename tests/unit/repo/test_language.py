"""Tests of plain English: all docstrings, comments, option help and documents follow the rules in CONTRIBUTING.md."""

from __future__ import annotations

import re

import pytest

from tests.support.repo import language

PENDING: dict[str, set[str]] = {}
"""Rooms and documents that do not follow the rules yet.  Remove an entry when its room is clean; never add one."""


@pytest.fixture(scope="module")
def problems() -> dict[str, list[str]]:
    return language.problems()


@pytest.mark.slow
def test_rooms_that_are_not_pending_are_in_plain_english(problems: dict[str, list[str]]) -> None:
    pending = {room for rooms in PENDING.values() for room in rooms}
    wrong = [line for room, lines in sorted(problems.items()) if room not in pending for line in lines]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.slow
def test_rooms_that_are_clean_are_not_pending(problems: dict[str, list[str]]) -> None:
    clean = [room for rooms in PENDING.values() for room in rooms if room not in problems]
    assert not clean, f"remove these from PENDING: {clean}"


CLEAN = '''"""Tests of disks.

The module holds two classes.
"""


class Base:
    """A base."""

    def read(self) -> bytes:
        """Return all bytes."""


class Disk(Base):
    """A disk, which goes on top of a base."""

    def read(self) -> bytes:  # closed cleanly; entries are in order to be read quickly
        return b""

    def _private(self) -> None:
        pass


class _Private:
    def read(self) -> bytes:
        return b""
'''


def of_python(text: str, path: str = "blockfs/disk/disk.py") -> list[str]:
    return language.check_python(path, text).report()


def test_clean_code_has_no_problems() -> None:
    assert of_python(CLEAN) == []


@pytest.mark.parametrize(
    ("now", "then", "line", "why"),
    [
        ('"""A base."""', "...", 7, "Base has no docstring"),
        ("class Disk(Base)", "class Disk(Other)", 17, "read has no docstring"),
        ("A base.", "A base", 8, "does not end with a period"),
        ("A base.", "What is under a disk.", 8, 'begins with "What"'),
        ("A base.", "Of a disk.", 8, 'begins with "Of"'),
        ("A base.", "One that reads.", 8, 'begins with "One that"'),
        ("A base.", "See :class:`Disk`.", 8, 'begins with "See"'),
        ("A base.", "None.", 8, 'begins with "None."'),
        ("A base.", "``DiskFull``.", 8, "is a fragment"),
        ("A base.", "The disk's.", 8, "is a fragment"),
        ("A base.", "A base that is told when it is full.", 8, '"is told"'),
        ("The module holds", "Whoever reads it holds", 3, '"Whoever"'),
        ("The module holds", "The module goes\non with", 3, '"goes on"'),
        ("The module holds", "It is full. What is left holds", 3, 'begins with "What"'),
        ("closed cleanly", "closed in order", 17, '"closed in order"'),
        ("closed cleanly", "the log is given up", 17, '"given up"'),
    ],
)
def test_each_rule_for_python_is_checked(now: str, then: str, line: int, why: str) -> None:
    assert CLEAN.count(now) == 1
    found = of_python(CLEAN.replace(now, then))
    assert found
    assert found[0].startswith(f"blockfs/disk/disk.py:{line}: ")
    assert why in found[0]


def test_a_module_needs_a_docstring() -> None:
    assert of_python("x = 1\n") == ["blockfs/disk/disk.py:1: the module has no docstring"]


def test_help_of_options_is_checked() -> None:
    text = CLEAN + 'option = Option("--size", help="What the size is.")\nother = Option("--log", help="Give up the log.")\n'
    found = of_python(text)
    assert [line.split(":")[1] for line in found] == ["27", "27", "28"]
    assert "the help begins with" in "".join(found)


def test_test_functions_need_no_docstring() -> None:
    text = '"""Tests of disks."""\n\n\ndef test_read() -> None:\n    pass\n'
    assert of_python(text, "tests/unit/blockfs/disk/test_disk.py") == []
    assert of_python(text, "tests/support/disk.py") == ["tests/support/disk.py:4: test_read has no docstring"]


def test_comments_of_c_are_checked() -> None:
    text = '/* The log\n * lets go of its lock. */\nint x;\nstatic char *text = "let go"; // it says so\n'
    assert language.check_c("cext/src/disk/changelog.c", text).report() == [
        'cext/src/disk/changelog.c:2: "lets go": write "release" for "let go"',
        'cext/src/disk/changelog.c:4: "says so": write "report", "log" or "raise" for "say so"',
    ]


def test_prose_of_documents_is_checked() -> None:
    text = """# What it is

A disk.

```
let go
```

- Of a disk.
- `let go`, and "let go"
- It goes
  on.
| a | is told |
"""
    assert [line.partition(": ")[0] for line in language.check_document("docs/disk.md", text).report()] == [
        "docs/disk.md:9",
        "docs/disk.md:9",
        "docs/disk.md:11",
        "docs/disk.md:13",
    ]


def test_old_words_of_the_glossary_are_not_checked() -> None:
    text = "| term | not used |\n| --- | --- |\n| release | let go |\n| let go | |\n\n| a | let go |\n"
    assert [line.partition(": ")[0] for line in language.check_document("docs/glossary.md", text).report()] == [
        "docs/glossary.md:4",
        "docs/glossary.md:6",
    ]


def test_comments_of_a_shell_script_are_checked() -> None:
    script = "#!/bin/sh\n# Runs the tests.\nrun # what is run\n\n# What is missing\n# is told.\nset_up\n"
    found = language.check_shell("rig", script).report()
    assert [line.partition(" ")[0] for line in found] == ["rig:5:", "rig:6:"]


@pytest.mark.parametrize(
    ("docstring", "problem"),
    [
        ("Remove a disk (``DiskInUse``).", "Raises:"),
        ("Remove a disk (``DiskInUse``, ``VmNotFound`` or ``VmBusy``).", "Raises:"),
        ("The size of a disk.", "begin with a verb"),
        ("True if the disk is open.", "begin with a verb"),
    ],
)
def test_a_docstring_that_is_no_sentence_of_the_form_is_reported(docstring: str, problem: str) -> None:
    code = f'"""Sizes of disks."""\n\n\ndef size() -> int:\n    """{docstring}"""\n    return 1\n'
    (found,) = language.check_python("blockfs/disk.py", code).report()
    assert problem in found


@pytest.mark.parametrize(
    "docstring", ["Remove a disk (``NAME.img``).", "Return the size of a disk (``EIO`` if it is lost)."]
)
def test_a_docstring_with_file_names_and_reasons_is_allowed(docstring: str) -> None:
    code = f'"""Sizes of disks."""\n\n\ndef size() -> int:\n    """{docstring}"""\n    return 1\n'
    assert language.check_python("blockfs/disk.py", code).report() == []


NAME_CHARS_MAX = 75


def test_names_of_tests_are_short_and_in_plain_english() -> None:
    problems = []
    for path in language.python_files():
        if path.name.startswith("test_"):
            names = re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
            problems += [f"{path.name}: {name}: too long" for name in names if len(name) > NAME_CHARS_MAX]
            problems += [f"{path.name}: {name}: {problem}" for name in names for problem in language.check_name(name)]
    assert problems == []


@pytest.mark.parametrize("name", ["test_what_is_gone_is_shown", "test_a_role_that_ends_is_told", "test_a_wait_is_given_up"])
def test_a_name_with_a_forbidden_phrase_is_reported(name: str) -> None:
    assert language.check_name(name) != []


def test_a_plain_name_has_no_problem() -> None:
    assert language.check_name("test_a_lost_site_stays_down_until_it_is_restored") == []
