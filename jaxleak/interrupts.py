"""Ctrl-C that waits for a piece of work to end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Yields `requested()`, whether Ctrl-C was pressed since; the press itself interrupts nothing.

    A second press raises KeyboardInterrupt at once. Outside of the main thread, where Python handles no signals, or
    where Ctrl-C has a handler of someone else's, nothing changes.
    """
    pressed = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or previous is not signal.default_int_handler:
        yield pressed.is_set
        return

    def note(number, frame):
        if pressed.is_set():
            signal.default_int_handler(number, frame)
        pressed.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
