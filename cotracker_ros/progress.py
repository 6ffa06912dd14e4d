"""A progress bar on standard error."""

import sys

WIDTH = 30  # characters of the bar


class Progress:
    """A bar where standard error is a terminal; nothing elsewhere, so that logs stay short.

    To be used as `with Progress() as progress`: however the block ends, the bar's line ends too.
    """

    def __init__(self) -> None:
        self._drawn = False

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *error) -> None:
        if self._drawn:
            print(file=sys.stderr)

    def show(self, done: int, total: int | None, note: str = '') -> None:
        """Show that so many frames of `total` are done; None: nobody knows how many there are."""
        if not sys.stderr.isatty():
            return
        share = min(1.0, done / total) if total else 0.0
        bar = f'[{"#" * round(WIDTH * share):<{WIDTH}}] ' if total else ''
        text = f'{done}{f"/{total}" if total else ""} frames{note}'
        print(f'\r{bar}{text} ', end='', file=sys.stderr, flush=True)
        self._drawn = True
