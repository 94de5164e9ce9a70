"""A PagedCache whose calls are ended by real signals, at any instruction: a change is whole or has not been."""

import gc
import random
import signal
import time

import pytest

from support.interrupts import Signals
from support.owned_pages import Given

CALLS = {
    "append": lambda given: given.cache.append([given.first, given.second, given.third], *given.new),
    "truncate": lambda given: given.second.truncate(3),
    "fork": lambda given: given.first.fork(),
    "free": lambda given: given.second.free(),
    "sequence": lambda given: given.cache.sequence(),
    "defragment": lambda given: given.cache.defragment(),
    "requantise": lambda given: given.cache.requantise(k="int8", v="int8"),
}


@pytest.fixture(autouse=True)
def _no_collection():
    """A signal that ends a callback of the garbage collector, such as hypothesis has, reaches nobody."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_a_signal_ends_is_whole_or_has_not_been(name):
    draw, ended = random.Random(5), 0
    us = 20.0  # until the signal; less after one that came behind the call, more after one that came before it
    ends = time.monotonic() + 0.8
    with Signals(KeyboardInterrupt) as signals:
        while time.monotonic() < ends:
            given, has_begun, is_done = Given(), False, False
            rounds = len(signals.raised)
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.5, 1.5) * us * 1e-6)
                has_begun = True
                CALLS[name](given)
                is_done = True
                while len(signals.raised) == rounds:  # a signal that came too late for the call
                    pass
            except KeyboardInterrupt as error:
                error.with_traceback(None)  # whose frames may hold a sequence that nobody was given
            us *= 0.8 if is_done else draw.choice((0.8, 1.25)) if has_begun else 1.25
            ended += has_begun and not is_done
            if given.cache.view.k.dtype.name == "uint8":
                pages = [page for seq in (given.first, given.second, given.third) for page in seq.pages]
                assert given.cache.num_free_pages == 10 - len(set(pages))
            else:
                given.is_whole()
            given.first.append(*given.new[:, :1])
    assert len(signals.raised) > 20 and ended > 3
