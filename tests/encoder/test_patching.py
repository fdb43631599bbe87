"""Temporary changes to shared objects: counted, undone by the last user, whatever interrupts it."""

import signal
import threading
import time
from types import SimpleNamespace

import pytest

from prompteol_utils.encoder.patching import patched


def set_flag(target, undos):
    undos.append(lambda: vars(target).pop("flag", None))
    target.flag = True


def changes(targets):
    return {("flag", id(target)): lambda undos, t=target: set_flag(t, undos) for target in targets}


@pytest.fixture
def targets():
    return [SimpleNamespace() for _ in range(50)]


def test_the_last_user_undoes(targets):
    with patched(changes(targets)):
        with patched(changes(targets)):
            pass
        assert all(hasattr(target, "flag") for target in targets)
    assert not any(hasattr(target, "flag") for target in targets)


def test_a_change_that_fails_undoes_the_ones_before_it(targets):
    def fail(undos):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), patched(changes(targets) | {"bad": fail}):
        pass
    assert not any(hasattr(target, "flag") for target in targets)
    with patched(changes(targets)):
        assert all(hasattr(target, "flag") for target in targets)


@pytest.mark.parametrize("position", [0, 25, 49])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_undoing(targets, position, when):
    """Raised by an undo itself, which stands for Ctrl-C at that moment."""
    pending = [KeyboardInterrupt()]

    def interrupted(undos):
        def undo():
            if when == "before" and pending:
                raise pending.pop()
            vars(targets[position]).pop("flag", None)
            if pending:
                raise pending.pop()

        undos.append(undo)
        targets[position].flag = True

    mine = changes(targets)
    mine["flag", id(targets[position])] = interrupted
    with pytest.raises(KeyboardInterrupt), patched(mine):
        pass
    assert not any(hasattr(target, "flag") for target in targets)
    with patched(changes(targets)):
        assert all(hasattr(target, "flag") for target in targets)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_ctrl_c_at_any_moment(targets):
    """Real signals at 300 random moments; nothing stays behind."""
    interrupted = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for step in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + 7 * step % 400))
                while True:
                    with patched(changes(targets)):
                        pass
            except KeyboardInterrupt:
                interrupted += 1
            assert not any(hasattr(target, "flag") for target in targets)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 300


def test_threads_see_their_changes(targets):
    missing = []

    def work():
        for _ in range(200):
            with patched(changes(targets)):
                time.sleep(0)
                if not all(hasattr(target, "flag") for target in targets):
                    missing.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not missing
    assert not any(hasattr(target, "flag") for target in targets)
