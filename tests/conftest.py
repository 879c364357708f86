"""What all tests share: no test is judged by how long it took on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("siterig", deadline=None)
settings.load_profile("siterig")
