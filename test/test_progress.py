"""What a user sees of a run that takes minutes, on a terminal and in a log."""

import contextlib
import io
import sys

from cotracker_ros.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_ends_with_the_block_or_an_error(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with Progress() as progress:
        progress.show(5, 10, ' backward')
        progress.show(20, 10)  # more than the header of the file had promised
    assert terminal.getvalue() == (
        f'\r[{"#" * 15}{" " * 15}] 5/10 frames backward \r[{"#" * 30}] 20/10 frames \n'
    )
    with contextlib.suppress(KeyboardInterrupt), Progress() as progress:
        progress.show(1, None)
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith('\n\r1 frames \n')


def test_a_log_has_none(capsys):
    with Progress() as progress:
        progress.show(5, 10)
    assert not capsys.readouterr().err
