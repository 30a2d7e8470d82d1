"""The one exception type of the fault kit."""


class ChaosError(Exception):
    """A local node could not do what was asked; the message says what happened and, if known, what to do."""
