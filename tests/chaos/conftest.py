"""What the chaos suite did, told at its end."""

from __future__ import annotations

import pytest
from _tally import TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := TALLY.lines():
        terminalreporter.section("chaos")
        for line in lines:
            terminalreporter.write_line(line)
