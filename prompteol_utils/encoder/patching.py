"""Changes to a model that last while a batch needs them: threads share a model, so the first makes a change and the last takes it back."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

_lock = threading.Lock()
_users: dict[
    Hashable, tuple[int, Callable[[], None]]
] = {}  # what is changed -> how many need it so, and how to change it back


@contextmanager
def patched(changes: Mapping[Hashable, Callable[[], Callable[[], None]]]) -> Iterator[None]:
    """Make changes for as long as the context lasts, in whichever thread.

    Args:
        changes: A name of what is changed, alike for all who change it so, to a function that changes it and returns how to change it
            back.
    """
    made = []
    try:
        with _lock:
            for key, change in changes.items():
                count, undo = _users.get(key) or (0, change())
                _users[key] = count + 1, undo
                made.append(key)
        yield
    finally:
        with _lock:
            for key in reversed(made):
                count, undo = _users.pop(key)
                if count > 1:
                    _users[key] = count - 1, undo
                else:
                    undo()
