"""Fibers outlive a launch: they may go on on another OS thread than the one they began on."""

import threading

import pytest

import kvit
from kvit._native import host


@pytest.fixture
def one_worker():
    before = host.configure(workers=1)
    yield
    host.configure(**before)


def test_fibers_made_on_a_thread_that_has_ended_serve_another(one_worker, rng):
    # With one worker a CTA runs on the calling thread, and its fibers are kept for the next caller, whoever that is.
    # 40 rounds: the address of a dead thread's variables is not always unmapped at once.
    q = rng.standard_normal((2, 4, 64)).astype("float16")
    cache = kvit.PagedCache(4, 64, 2, 64, dtype="float16", device="host")
    seqs = [cache.sequence(), cache.sequence()]
    cache.append(seqs, q[:, :2], q[:, 2:])
    want = kvit.attention(q, cache, seqs).numpy()
    results = []
    for _ in range(40):
        caller = threading.Thread(target=lambda: results.append(kvit.attention(q, cache, seqs).numpy()))
        caller.start()
        caller.join()
    assert len(results) == 40 and all((result == want).all() for result in results)
