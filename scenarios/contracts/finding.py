"""The result of one check of a VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckFinding:
    """One result; ``evidence`` describes the observation, for a passed check as well."""

    name: str
    ok: bool
    evidence: str
