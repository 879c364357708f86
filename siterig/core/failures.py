"""Telling an expected failure from a bug, also when trio wrapped it in an exception group."""

from __future__ import annotations

from siterig.blockfs.core.errors import RigError


def unwrap_rig_error(error: BaseException) -> RigError | None:
    """Return the ``RigError`` in ``error``; None if anything in it is a bug.

    A nursery raises its tasks' errors as a group.  Several expected failures at once are one failure to a user:
    the first is reported, because the others usually follow from it.
    """
    if isinstance(error, RigError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [unwrap_rig_error(inner) for inner in error.exceptions]
        if all(inner is not None for inner in found):
            return found[0]
    return None
