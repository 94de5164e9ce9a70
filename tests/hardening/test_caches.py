"""Hunts for pages that a cache loses or gives out twice: random calls on nearly full pools, some of them broken off.

The model is a list of tokens for each sequence. A call that is broken off has been whole, or has not been.
"""

import contextlib
import gc
import signal
import sys

import numpy as np
import pytest

from support.cache_models import CacheModel
from support.interrupts import Interrupt, interrupt_at

STEPS = 40


def run(model, hunt, attempt_of, with_requantise=False):
    for step in range(STEPS):
        attempt = attempt_of()
        if with_requantise and step == STEPS // 2:
            hunt.count(model.requantise(attempt))
        hunt.count(model.step(attempt))
        model.check()


@pytest.mark.hunt(share=4, short=4)
def test_any_order_of_calls_leaves_each_sequence_its_tokens(hunt, device):
    for rng in hunt.rounds():
        model = CacheModel(rng, device)
        run(model, hunt, lambda: lambda call: call() or True, with_requantise=bool(rng.integers(2)))


@pytest.mark.hunt(share=4, short=4)
def test_an_exception_at_any_line_loses_nothing(hunt, device):
    for rng in hunt.rounds():

        def broken(rng=rng):
            line = int(rng.integers(1, rng.choice([8, 16, 40, 120, 400])))

            def attempt(call):
                with contextlib.suppress(Interrupt), interrupt_at(line):
                    call()
                    return True
                return False

            return attempt

        run(CacheModel(rng, device), hunt, broken, with_requantise=rng.integers(4) == 0)


class Alarm:
    """A signal at a random moment, whose handler raises Interrupt: while it is armed, and never at another time."""

    def __init__(self):
        self.armed, self.fired = False, 0

    def handle(self, *_):
        if self.armed:
            self.armed = False
            self.fired += 1
            raise Interrupt

    def attempt(self, call, seconds):
        """Whether the call came to its end. Where the signal came right behind it, that is not known: then False."""
        is_done = False
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
            self.armed = False
            is_done = True
        except Interrupt:
            pass
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        return is_done


@pytest.fixture
def alarm(monkeypatch):
    """The process's alarm, given back afterwards.

    Python ignores what is raised in a callback of a weak reference: the call goes on. pytest would keep that exception,
    and with it the frames of the call and their sequences.
    """
    found, ignored = Alarm(), sys.unraisablehook

    def ignore(it):
        if not isinstance(it.exc_value, Interrupt):
            ignored(it)

    monkeypatch.setattr(sys, "unraisablehook", ignore)
    before = signal.signal(signal.SIGALRM, found.handle)
    yield found
    signal.signal(signal.SIGALRM, before)


@pytest.mark.hunt(share=4, short=4)
def test_a_signal_at_any_moment_loses_nothing(hunt, device, alarm):
    for rng in hunt.rounds():

        def broken(rng=rng):
            seconds = 10 ** rng.uniform(-5.3, -2.7)  # 5 us to 2 ms: the time of a call
            return lambda call: alarm.attempt(call, seconds)

        run(CacheModel(rng, device), hunt, broken, with_requantise=rng.integers(4) == 0)
        hunt.counts["signals"] = alarm.fired
    assert alarm.fired > 0


@pytest.mark.hunt(share=1, short=1)
def test_sequences_in_circles_give_their_pages_back(hunt, device):
    for rng in hunt.rounds():
        model = CacheModel(rng, device)
        run(model, hunt, lambda: lambda call: call() or True)
        for seq, _ in model.live:
            circle = [seq]
            circle.append(circle)
        circle = seq = None
        model.live.clear()
        gc.collect()
        model.check()
        assert model.cache.num_free_pages == model.num_pages
        np.testing.assert_array_equal([model.cache.pool.owners(page) for page in range(model.num_pages)], 0)
        hunt.count("circles")
