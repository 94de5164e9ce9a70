"""The C API where memory or threads run short: a status, all or nothing, and operations that go on right afterwards."""

import pytest

from support.shortage import run_short

CALLS = """
from kvit._native import host
from support import capi
from support.capi_cache import SharedPages

host.configure(workers=1)  # threads' own memory is the C library's to ask for, and it ends the process without
api = capi.Api()
MAY_BE = {0, capi.STATUSES.index("OUT_OF_MEMORY"), capi.STATUSES.index("HOST_BACKEND")}
name, step = sys.argv[1], int(sys.argv[2])
warm = SharedPages(api)
warm.call(name, [])
warm.close()
met = []
for count in (1, 3):
    for number in itertools.count(1, step):
        given, statuses = SharedPages(api), []
        is_short = short_of(MEMORY, number, count, lambda: given.call(name, statuses))
        words = api.table.last_error() if statuses and statuses[0] else b""
        assert set(statuses) <= MAY_BE, (statuses, words)
        is_seen = given.check()[name]
        if statuses:  # else it was ctypes that had no memory, before the call or after it
            assert name == "cache_attention" or is_seen == (name == "sequence_destroy" or statuses == [0]), statuses
        assert not statuses or not statuses[0] or b"Error: " in words
        met += statuses
        given.close()
        if not is_short:
            break
assert statuses == [0]
print(met.count(capi.STATUSES.index("OUT_OF_MEMORY")))
"""


@pytest.mark.parametrize(
    ("name", "step", "at_least"),
    [
        ("cache_append", 5, 30),
        ("cache_attention", 9, 15),
        ("sequence_create", 1, 3),
        ("sequence_fork", 1, 3),
        ("sequence_truncate", 1, 0),  # neither asks for any
        ("sequence_destroy", 1, 0),
    ],
)
def test_a_call_that_finds_no_memory_has_a_status_and_is_whole_or_has_not_been(tmp_path, name, step, at_least):
    assert int(run_short(tmp_path, CALLS, name, str(step))) >= at_least


# A CTA's threads are OS threads, of which one cannot be had: the launch ends with some CTAs done and others not begun,
# whose parts of a head wait in the workspace.
LAUNCHES = """
import numpy as np
import kvit
from ctypes import byref, pointer
from kvit._native import host
from support import capi
from support.caches import make_case
from support.memory import aligned

host.configure(scheduler="threads", workers=1)
api = capi.Api()
rng = np.random.default_rng(2)
case = make_case(rng, [200, 150, 90, 260])
view, table = api.view(case.view), capi.table_of(case.page_table)
q = case.queries(rng, 4, 8)
out, size = np.zeros_like(q), kvit.Attention(case.view, 8).workspace_bytes
workspace = aligned(size)
memory = [pointer(capi.tensor(x)) for x in (q, out)]
stream = kvit.Stream("host")
kind = sys.argv[1]
op = api.op(view, query_heads=8, workspace=pointer(capi.tensor(workspace)), launch=int(kind == "graph"))
statuses = []

def call():
    statuses.append(api.table.attention(op, view, byref(table), *memory, None, None, stream.handle))

call()
expected = out.copy()
state, bound = case.expect(q)
assert (np.abs(out.astype(np.float32) - state.out) <= bound).all()
if kind == "captured":
    with kvit.Graph.capture(stream) as graph:
        call()
    call = graph.launch
failures = 0
for number in itertools.count(1, 499):
    out[:] = np.nan
    is_short = short_of(THREADS, number, 1, call)
    assert not workspace.any(), number  # as every launch must find it
    if not is_short:
        break
    failures += 1
    if kind == "captured":
        assert isinstance(ERRORS[-1], kvit.HostBackendError)
    else:
        assert statuses[-1] == capi.STATUSES.index("HOST_BACKEND")
        assert b"HostBackendError: kvit_decode__" in api.table.last_error()
    assert not np.array_equal(out, expected)
    call()
    assert np.array_equal(out, expected) and not workspace.any(), number
assert statuses[-1] == 0
print(failures)
"""


@pytest.mark.parametrize("kind", ["direct", "graph", "captured"])
def test_a_launch_that_failed_half_way_leaves_its_workspace_as_the_next_one_needs_it(tmp_path, kind):
    assert int(run_short(tmp_path, LAUNCHES, kind)) >= 2
