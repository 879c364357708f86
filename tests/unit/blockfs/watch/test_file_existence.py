"""A file that appears, disappears, goes with its folder, or is replaced is noticed at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from siterig.blockfs.watch import file_existence
from siterig.blockfs.watch.file_existence import existence, versions

T = TypeVar("T")


async def following(changes: AsyncIterator[T]) -> T:
    with trio.fail_after(10):
        return await anext(changes)


@pytest.mark.parametrize("with_inotify", [True, False])
async def test_every_change_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_inotify: bool) -> None:
    if with_inotify:
        monkeypatch.setattr(file_existence, "LOOK_S", 3600.0)
    else:
        monkeypatch.setattr(file_existence, "_instance", lambda: -1)
        monkeypatch.setattr(file_existence, "LOOK_S", 0.01)
    folder = tmp_path / "a" / "b"
    file = folder / "armed"
    async with aclosing(existence(file)) as changes:
        assert await following(changes) is False
        folder.mkdir(parents=True)
        file.touch()
        assert await following(changes) is True
        file.unlink()
        assert await following(changes) is False
        (folder / "other").touch()
        (folder / "other").rename(file)
        assert await following(changes) is True
        folder.parent.rename(tmp_path / "elsewhere")
        assert await following(changes) is False


async def test_a_file_that_replaces_another_one_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_existence, "LOOK_S", 3600.0)
    file, newer = tmp_path / "file", tmp_path / "newer"
    async with aclosing(versions(file)) as changes:
        seen = [await following(changes)]
        for content in ("one", "two", "two"):
            newer.write_text(content)
            newer.rename(file)
            seen.append(await following(changes))
        assert seen[0] is None and len(set(seen)) == 4
