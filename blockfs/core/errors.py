"""The one kind of error that a user or a peer is meant to see."""

from __future__ import annotations


class RigError(Exception):
    """Something expected went wrong; the message names the thing, its value and what is allowed.

    ``code`` is stable and is what programs compare (``VmNotFound``, ``DiskFull``, ...).  It crosses process
    boundaries unchanged.  Anything that is not a ``RigError`` is a bug and shows a traceback.
    ``recoverable`` says whether the replication engine may try again by itself (network, low space, low
    memory) or an administrator must act (broken log chain, authentication, VM not found).
    ``role``: the role of the rig that was away, if that was the reason.  ``uncertain``: a call to it was sent and not
    answered, so it may have been done or not; it must not be repeated unless a second time does no harm.
    """

    def __init__(
        self, code: str, message: str, *, recoverable: bool = False, role: str | None = None, uncertain: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.recoverable = recoverable
        self.role = role
        self.uncertain = uncertain
