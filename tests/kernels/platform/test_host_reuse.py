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


def test_fibers_made_on_one_thread_serve_another(one_worker, rng):
    # With one worker a CTA runs on the calling thread, and its fibers are kept for the next caller, whoever that is.
    # Two callers take turns, so fibers move at every call.
    q = rng.standard_normal((2, 4, 64)).astype("float16")
    results = []

    def attend():
        cache = kvit.PagedCache(4, 64, 2, 64, dtype="float16", device="host")
        seqs = [cache.sequence(), cache.sequence()]
        cache.append(seqs, q[:, :2], q[:, 2:])
        results.append(kvit.attention(q, cache, seqs).numpy())

    for _ in range(3):
        caller = threading.Thread(target=attend)
        caller.start()
        caller.join()
        attend()
    assert len(results) == 6 and all((result == results[0]).all() for result in results)
