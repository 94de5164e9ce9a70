"""Hunts for processes that end badly: objects of every kind, torn down in an order that is drawn, in many ways."""

import pytest

from support.processes import run_python

# Makes one of everything and ties some of it into knots; what is kept where, and how the process ends, is drawn.
PROGRAM = """
import atexit, gc, random, sys, threading
import numpy as np
import kvit
draw, device = random.Random(int(sys.argv[1])), sys.argv[2]
cache = kvit.PagedCache(8, 4, 1, 64, device=device)
seq = cache.sequence()
rows = kvit.Tensor.wrap(kvit.Buffer.from_numpy(np.full((3, 1, 64), 0x3F80, np.uint16), device), "bfloat16")
cache.append([seq], rows, rows)
fork = seq.fork()
op = kvit.Attention(cache.view, 1)
table = cache.table([seq])
stream, event = kvit.Stream(device), kvit.Event(device)
event.record(stream)
out = kvit.Buffer.empty((1, 1, 64), "bfloat16", device, stream)
stream.synchronize()
with kvit.Graph.capture(stream) as graph:
    op(rows[:1] if hasattr(rows, "__getitem__") else out, cache.view, table, out=out, stream=stream)
graph.launch()
stream.synchronize()
capsule = out.__dlpack__(stream=None if device == "host" else -1)
things = dict(
    cache=cache, seq=seq, fork=fork, op=op, table=table, stream=stream, event=event, out=out, graph=graph,
    capsule=capsule, view=cache.view, rope=kvit.Rope(64), append=kvit.Append(cache.view), rows=rows,
    buffer=kvit.Buffer.empty(7, "uint8", device),
)
class Last:
    def __del__(self):
        try:
            cache.append([seq], rows, rows)
            seq.free()
        except Exception:
            pass
names = list(things)
draw.shuffle(names)
for name in names:
    thing = things[name]
    place = draw.randrange(7)
    if place == 0:
        globals()["kept_" + name] = thing
    elif place == 1:
        knot = [thing]
        knot.append(knot)
    elif place == 2:
        setattr(kvit, "kept_" + name, thing)
    elif place == 3:
        atexit.register(lambda thing=thing: repr(thing))
    elif place == 4:
        setattr(threading.current_thread(), "kept_" + name, thing)
    elif place == 5:
        sys.modules["kept_" + name] = thing
if draw.randrange(2):
    last = Last()
def work(rows=rows):  # which may be no global any more when the thread begins
    while True:
        fresh = kvit.PagedCache(4, 4, 1, 64, device=device)
        own = fresh.sequence()
        own.append(rows, rows)
        kvit.attention(rows, fresh, [own])
for _ in range(draw.choice([0, 0, 1, 3])):
    threading.Thread(target=work, daemon=True).start()
for name in draw.sample(names, draw.randrange(len(names))):
    things.pop(name)
    globals().pop(name, None)
if draw.randrange(2):
    gc.collect()
end = draw.randrange(4)
if end == 1:
    sys.exit(0)
elif end == 2:
    for name in [name for name in sys.modules if name.startswith("kvit")]:
        if draw.randrange(3) == 0:
            del sys.modules[name]
elif end == 3:
    atexit.register(lambda: kvit.Attention(cache.view, 1) if "cache" in globals() else None)
"""


@pytest.mark.hunt(share=4, short=2)
def test_the_process_ends_silently_in_whatever_order_things_go(hunt, device):
    for rng in hunt.rounds():
        seed = int(rng.integers(1 << 30))
        status, said, complaint = run_python(PROGRAM, str(seed), device)
        assert (status, said, complaint) == (0, "", ""), f"seed {seed} of the program: {status}\n{said}\n{complaint}"
        hunt.count("ends")
