"""What programs that run others do about signals."""

import signal


def end_at_sigterm() -> None:
    """Let SIGTERM end this program as an interrupt does: what it runs would go on without it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
