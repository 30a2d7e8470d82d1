"""What `st.data()` drew in a rule: recorded, and given again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, final

from hypothesis.strategies import DataObject, SearchStrategy

T = TypeVar("T")


class Recording(DataObject):
    """The data object of a rule that writes down what it gives."""

    def __init__(self, original: DataObject, write: Callable[[object], str]) -> None:
        super().__init__(original.conjecture_data)
        self._write = write
        self.drawn: list[str] = []

    def draw(self, strategy: SearchStrategy[T], label: Any = None) -> T:
        value = super().draw(strategy, label)
        self.drawn.append(self._write(value))  # now: the rule may change it
        return value


@final
class Draws:
    """Stands for `st.data()` in a printed program: `draw` gives these values, one after the other."""

    def __init__(self, *values: Any) -> None:
        self._values = list(values)

    def draw(self, strategy: object = None, label: object = None) -> Any:
        """The next value, whatever the strategy."""
        return self._values.pop(0)
