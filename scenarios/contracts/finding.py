"""What a checker says about one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing checked; ``evidence`` is what was seen, whether it held or not."""

    name: str
    ok: bool
    evidence: str
