"""Errors that only threads can meet."""

from __future__ import annotations

import concurrent.futures
from typing import Self, final

import pgha._errors as errors


@final
class OperationCancelled(errors.OperationCancelled, concurrent.futures.CancelledError):
    """Raised after `Operation.cancel` if the operation was a read, or certainly was not applied.

    A subclass of both `pgha.OperationCancelled` and `concurrent.futures.CancelledError`.
    """

    @classmethod
    def of(cls, error: errors.OperationCancelled) -> Self:
        """Internal: convert the error of the asynchronous API."""
        made = cls(*error.args)
        made.__cause__ = error.__cause__
        errors.annotate(made, errors.error_info(error))
        return made


@final
class WouldDeadlock(errors.Error, RuntimeError):
    """Raised by a waiting call in the cluster's own thread, which would have to deliver the answer.

    Row factories, loaders, ``on_send`` and done callbacks run in that thread: use ``submit`` there, which
    does not wait.
    """
