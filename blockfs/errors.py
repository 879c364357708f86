"""The one kind of error that a user or a peer is meant to see."""

from __future__ import annotations


class RigError(Exception):
    """Something expected went wrong; the message names the thing, its value and what is allowed.

    ``code`` is stable and is what programs compare (``VmNotFound``, ``DiskFull``, ...).  It crosses process
    boundaries unchanged.  Anything that is not a ``RigError`` is a bug and shows a traceback.
    ``recoverable`` says whether the replication engine may try again by itself (network, low space, low
    memory) or an administrator must act (broken log chain, authentication, VM not found).
    """

    def __init__(self, code: str, message: str, *, recoverable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.recoverable = recoverable
