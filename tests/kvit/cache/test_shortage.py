"""A PagedCache for which memory runs short at any point of a call: each change is whole or has not been."""

import pytest

from support.shortage import run_short

# Each request for memory of a call fails in turn, alone and with the two behind it: Python's, numpy's and kvit's.
PROGRAM = """
import numpy as np
import kvit
from kvit._native import host
from support.owned_pages import Given

calls = {
    "append": lambda given: given.cache.append([given.first, given.second, given.third], *given.new),
    "truncate": lambda given: given.second.truncate(3),
    "fork": lambda given: given.first.fork(),
    "free": lambda given: given.second.free(),
    "sequence": lambda given: given.cache.sequence(),
    "defragment": lambda given: given.cache.defragment(),
    "requantise": lambda given: given.cache.requantise(k="int8", v="int8"),
}
name, step = sys.argv[1], int(sys.argv[2])
call = calls[name]
host.configure(workers=1)  # threads' own memory is the C library's to ask for, and it ends the process without
call(Given())  # loads what stays loaded
refused = 0
for count in (1, 3):
    for number in itertools.count(1, step):
        given = Given()
        is_short = short_of(MEMORY, number, count, lambda: call(given))
        if name == "requantise" and given.cache.view.k.dtype.name == "uint8":
            pages = [page for seq in (given.first, given.second, given.third) for page in seq.pages]
            assert [given.cache.pool.owners(page) for page in range(10)] == [pages.count(page) for page in range(10)]
        else:
            given.is_whole()
        given.first.append(*given.new[:, :1])  # and goes on
        if not is_short:
            break
print(len(ERRORS), *sorted({type(error).__name__ for error in ERRORS}))
"""


@pytest.mark.parametrize(
    ("name", "step", "at_least"),
    [
        ("append", 3, 100),
        ("truncate", 1, 0),  # asks for no memory, and so cannot run short of it
        ("fork", 1, 4),
        ("free", 1, 0),  # the same
        ("sequence", 1, 4),
        ("defragment", 3, 50),
        ("requantise", 9, 50),
    ],
)
def test_a_call_that_finds_no_memory_is_whole_or_has_not_been(tmp_path, name, step, at_least):
    count, *errors = run_short(tmp_path, PROGRAM, name, str(step)).split()
    assert int(count) >= at_least and set(errors) <= {"MemoryError", "HostBackendError"}
