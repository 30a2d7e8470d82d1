"""The exception type of the fault kit."""


class ChaosError(Exception):
    """A failure of the fault kit; the message says what happened and, if known, what to do.

    Example::

        try:
            find_installation(16)
        except ChaosError as error:
            print(error)
    """
