"""Limits of the uploads that a site's agent has in flight.

This module loads nothing, so that a command line can name the defaults without the code that applies them.
"""

from __future__ import annotations

from dataclasses import dataclass

PER_HOST, PER_VM = 4, 4
"""Defaults: with less, Azurite waits for the next part; more are not faster, and need more memory."""
UPLOADS_MAX = 64


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Uploads in flight of all VMs of a host, and of each VM."""

    per_host: int = PER_HOST
    per_vm: int = PER_VM
