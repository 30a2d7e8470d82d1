"""The values that `st.data()` drew in a rule: recorded, and returned again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, final

from hypothesis.strategies import DataObject, SearchStrategy

T = TypeVar("T")


class Recording(DataObject):
    """The data object of a rule, which also records the values that it returns."""

    def __init__(self, original: DataObject, write: Callable[[object], str]) -> None:
        super().__init__(original.conjecture_data)
        self._write = write
        self.drawn: list[str] = []

    def draw(self, strategy: SearchStrategy[T], label: Any = None) -> T:
        """Draw a value and record its text."""
        value = super().draw(strategy, label)
        self.drawn.append(self._write(value))  # now, because the rule may change the value
        return value


@final
class Draws:
    """A stand-in for `st.data()` in a printed program: `draw` returns given values, one after the other.

    Args:
        *values: The values, in the order in which they are drawn.

    Example::

        data = Draws(1, "two")
        assert data.draw(st.integers()) == 1
    """

    def __init__(self, *values: Any) -> None:
        self._values = list(values)

    def draw(self, strategy: object = None, label: object = None) -> Any:
        """Return the next value.

        Args:
            strategy: Ignored; the parameter of `st.data().draw`.
            label: Ignored; the parameter of `st.data().draw`.

        Returns:
            The next value.

        Raises:
            IndexError: If there are no more values.
        """
        return self._values.pop(0)
