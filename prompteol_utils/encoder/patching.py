"""Temporary changes to a shared model: the first thread applies them, the last undoes them."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

_lock = threading.RLock()
_active: dict[Hashable, tuple[set, list[Callable[[], None]]]] = {}  # key -> its owners, its undos


@contextmanager
def patched(changes: Mapping[Hashable, Callable[[list], None]]) -> Iterator[None]:
    """Apply changes for the duration of the context, in whichever thread.

    A KeyboardInterrupt at any point leaves no change behind.

    Args:
        changes: From a key, equal for everyone who makes the same change, to a function that makes
            it. The function gets a list, and appends to it how to undo each step *before* it takes
            the step. An undo may run twice, and may run although its step was never taken.
    """
    owner = object()
    try:
        with _lock:
            try:
                _acquire(owner, changes)
            except BaseException:  # before another thread can see a change that is half made
                _release(owner, changes)
                raise
        yield
    finally:
        try:
            _release(owner, changes)
        except BaseException:  # Ctrl-C while undoing: once more, since every step can be repeated
            _release(owner, changes)
            raise


def _acquire(owner: object, changes: Mapping) -> None:
    for key, change in changes.items():
        if key in _active:
            _active[key][0].add(owner)
            continue
        undos: list[Callable[[], None]] = []
        _active[key] = ({owner}, undos)
        change(undos)


def _release(owner: object, changes: Mapping) -> None:
    with _lock:
        try:
            _drop(owner, changes)
        except BaseException:
            _drop(owner, changes)
            raise


def _drop(owner: object, changes: Mapping) -> None:
    for key in reversed(changes):
        owners, undos = _active.get(key, ((), ()))
        if owner not in owners:
            continue
        if len(owners) == 1:
            for undo in reversed(undos):
                undo()
            del _active[key]
        owners.discard(owner)
