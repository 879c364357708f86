"""The address of a rig's metrics, and the token that a reader needs."""

from __future__ import annotations

from pathlib import Path

from siterig.core.paths import Layout

ROLE = "metrics"
"""The name of the file with the port (``Layout.port``)."""


def read_token(file: Path) -> str | None:
    """Return the token in a file; None if there is none."""
    try:
        return file.read_text().strip() or None
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def address(layout: Layout) -> str | None:
    """Return the address of the metrics; None if the vault has not listened yet."""
    try:
        port = int(layout.port(ROLE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return f"http://127.0.0.1:{port}/metrics"
