"""The number of examples that hypothesis tries in a test.

``SITERIG_EXAMPLES=20`` tries twenty times as many; ``--hypothesis-seed`` repeats such a run.
"""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("SITERIG_EXAMPLES", "1"))


def examples(usual: int) -> int:
    """Return the number of examples of a test that usually has ``usual`` of them."""
    return usual * FACTOR
