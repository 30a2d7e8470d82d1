"""What only threads can meet."""

from __future__ import annotations

import concurrent.futures
from typing import Self, final

import pgha._errors as errors


@final
class OperationCancelled(errors.OperationCancelled, concurrent.futures.CancelledError):
    """`Operation.cancel` was called, and the operation certainly was not applied (or it was a read).

    Both `pgha.OperationCancelled` and `concurrent.futures.CancelledError`.
    """

    @classmethod
    def of(cls, error: errors.OperationCancelled) -> Self:
        """For pgha: what the async face would raise."""
        made = cls(*error.args)
        made.__cause__ = error.__cause__
        errors.annotate(made, errors.error_info(error))
        return made


@final
class WouldDeadlock(errors.Error, RuntimeError):
    """A call that waits was made in the cluster's own thread, which is the one that would have to answer.

    Row factories, loaders, ``on_send`` and done callbacks run there: use ``submit``, which does not wait.
    """
