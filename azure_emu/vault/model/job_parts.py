"""Parts of a job as the service shows it: calls to the Provider, and errors."""

from __future__ import annotations

from siterig.blockfs.core.wire_model import WireModel


class ProviderCall(WireModel):
    """A call of a task to the Provider on the site's host.  Times are RFC 3339 UTC.

    ``attempts``: how often it was made, because the task was run again.  ``error``: the code with which it failed, or None.
    """

    name: str
    startTime: str
    endTime: str | None
    attempts: int
    error: str | None


class JobError(WireModel):
    """The reason for which a job or task failed, with its cause and what a user does about it."""

    code: str
    message: str
    possibleCauses: str = ""
    recommendedAction: str = ""
