"""What all tests share: none is judged by how long it took on a busy machine, or by what another says in the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

settings.register_profile("siterig", deadline=None)
settings.load_profile("siterig")


@pytest.fixture(autouse=True)
def log_settings() -> Iterator[None]:
    """A command that runs in the test's own process sets what is logged."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
