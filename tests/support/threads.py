"""Functions for threads are run in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio


def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run functions for threads in place: an autojumping clock takes a wait for a thread for idleness."""

    async def run_sync(function: Callable[..., Any], *args: Any, **_options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
