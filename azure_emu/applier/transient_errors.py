"""The log of errors that will pass: such an error occurs at each poll, and is logged once."""

from __future__ import annotations

import structlog

from siterig.blockfs.core.errors import RigError

log = structlog.get_logger(__name__)


class TransientErrors:
    """The last error that will pass."""

    def __init__(self) -> None:
        self._message: str | None = None

    def note(self, error: RigError) -> None:
        """Log an error, unless it was the last one that occurred."""
        if self._message != error.message:
            self._message = error.message
            log.warning("peer_unavailable", code=error.code, reason=error.message)

    def clear(self) -> None:
        """Forget the last error, because a round has succeeded."""
        self._message = None
