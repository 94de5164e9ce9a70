"""Signals whose handlers raise in calls of the C API: a status, nothing lost, and Python gets its exception once."""

import itertools
import random
import signal
import time

import pytest

from support import capi
from support.capi_cache import SharedPages
from support.interrupts import Interrupt, Signals, interrupt_at

INTERRUPTED = capi.STATUSES.index("INTERRUPTED")
CALLS = [
    "cache_append", "cache_attention", "sequence_create", "sequence_fork", "sequence_truncate", "sequence_destroy",
]  # fmt: skip
NATIVE = {"sequence_truncate", "sequence_destroy"}  # which run no line of Python, so that nothing interrupts them


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_anywhere_is_whole_or_has_not_been(api, name):
    step = 5 if name.startswith("cache") else 1  # of the lines of kvit that run inside: some have very many
    outcomes = set()
    for line in itertools.count(1, step):
        given, statuses, words, is_interrupted = SharedPages(api), [], None, False
        try:
            with interrupt_at(line):
                given.call(name, statuses)
        except Interrupt:
            is_interrupted, words = True, api.table.last_error()
        is_done = given.check()[name]
        outcomes.add(is_done)
        given.close()
        if not is_interrupted:
            break
        assert statuses == [INTERRUPTED]
        assert words.startswith(b"Interrupt: the handler of a signal raised it during the call. A cache has changed as")
    assert statuses == [0] and (line > 5) == (name not in NATIVE)
    assert outcomes == {"cache_attention": {False}}.get(name, {True} if name in NATIVE else {False, True})


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_python_gets_what_each_handler_raised_once_and_the_cache_loses_nothing(api, kind):
    # Two seconds of signals that come at any time of a call, or between two.
    draw = random.Random(3)
    got, statuses = [], []
    given = SharedPages(api)
    ends = time.monotonic() + 2
    with Signals(kind) as signals:
        while time.monotonic() < ends:
            name = draw.choice(["cache_append", "sequence_truncate", "sequence_fork", "sequence_destroy"])
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 4e-4))
                given.call(name, statuses)
                while len(signals.raised) == len(got):  # a signal that came too late for the call
                    pass
            except kind as error:
                got.append(error.with_traceback(None))  # whose frames may hold a sequence that nobody was given
            given.check()
            given.close()
            given = SharedPages(api)
    given.close()
    assert got == signals.raised and len(got) > 100
    assert statuses.count(INTERRUPTED) > 20 and set(statuses) == {0, INTERRUPTED}
