"""Objects whose __init__ was not called: every use of them is refused in words, and none ends the process."""

import pytest

import kvit
from support.processes import run_python

CLASSES = ["Buffer", "Device", "Event", "Graph", "Stream", "Tensor", "Attention", "Append", "Gather", "CopyPages",
           "ConvertPages", "CacheView", "PageTable", "PagedCache", "VllmPages", "TurboMindBlocks", "Rope"]  # fmt: skip

TRY = """
import sys
import numpy as np
import kvit

kind = getattr(kvit, sys.argv[1])
made = [kind.__new__(kind), type("Mine", (kind,), {"__init__": lambda self: None})()]
for unmade in made:
    for name in dir(unmade):
        try:
            found = getattr(unmade, name)
        except Exception:
            continue
        for arguments in [(), (None,), (0,), (unmade,), (np.zeros(4, np.float32),), ("host",)]:
            if callable(found) and name != "__class__":
                try:
                    found(*arguments)
                except Exception:
                    pass
    # Where such objects are arguments.
    view = kvit.CacheView(np.zeros((2, 4, 1, 64), np.float16), np.zeros((2, 4, 1, 64), np.float16))
    table = kvit.PageTable(np.zeros((1, 2), np.int32), lengths=np.ones(1, np.int32))
    q = np.zeros((1, 1, 64), np.float16)
    for call in [
        lambda: kvit.Buffer.empty((4,), "uint8", unmade),
        lambda: kvit.Buffer.empty((4,), "uint8", "host", unmade),
        lambda: kvit.Buffer.empty((0,), "uint8", "host").copy_from(unmade),
        lambda: kvit.Event("host").record(unmade),
        lambda: kvit.Event("host").wait(unmade),
        lambda: kvit.Event("host").elapsed_ms(unmade),
        lambda: kvit.Graph.capture(unmade).__enter__(),
        lambda: kvit.Attention(view, 1)(q, view, table, stream=unmade),
        lambda: kvit.Attention(view, 1)(unmade, view, table),
        lambda: kvit.Attention(view, 1)(q, unmade, table),
        lambda: kvit.Attention(view, 1)(q, view, unmade),
        lambda: kvit.Attention(view, 1, workspace=unmade),
        lambda: kvit.Attention(unmade, 1),
        lambda: kvit.Append(unmade),
        lambda: kvit.Append(view, rope=unmade),
        lambda: kvit.attention(q, unmade, []),
    ]:
        try:
            call()
        except Exception:
            pass
"""


@pytest.mark.parametrize("name", CLASSES)
def test_no_use_of_an_unmade_object_ends_the_process(name):
    status, _, errors = run_python(TRY, name)
    assert status == 0, errors


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("Stream", lambda stream: stream.synchronize()),
        ("Event", lambda event: event.is_done),
        ("Buffer", lambda buffer: buffer.fill_bytes(0)),
        ("Device", lambda device: device.memory_bytes),
        ("Device", lambda device: kvit.Buffer.empty((4,), "uint8", device)),
    ],
)
def test_what_needs_a_device_says_that_init_was_not_called(name, use):
    kind = getattr(kvit, name)
    for unmade in (kind.__new__(kind), type("Mine", (kind,), {"__init__": lambda self: None})()):
        with pytest.raises(TypeError, match="__init__ was not called"):
            use(unmade)
