"""Hunts for tokens that steps of the C API, of batches and not, and swaps to host memory lose or invent.

Calls in any order; the model is each layer's rows.
"""

from ctypes import byref, c_int64, c_void_p, pointer
from dataclasses import dataclass, field

import numpy as np
import pytest

from support import capi
from support.caches import BFLOAT16, new_tokens
from support.capi import say

LAYERS, PAGES, PAGE_SIZE = 2, 8, 3  # few and small pages: steps fill the cache, and end within a page


@dataclass(eq=False)
class Live:
    """A sequence: its rows in each layer, and how often it was changed."""

    handle: c_void_p
    rows: list = field(default_factory=lambda: [np.zeros((2, 0, 1, 64), BFLOAT16)] * LAYERS)
    version: int = 0


@dataclass(eq=False)
class Open:
    """A step: (sequence, its version when the step began, new tokens) of each member, and rows that were written."""

    handle: c_void_p
    members: list
    written: dict = field(default_factory=dict)
    has_ended: bool = False

    def is_current(self, live):
        """Whether it can go on: nobody changed its sequences."""
        return not self.has_ended and all(seq in live and seq.version == version for seq, version, _ in self.members)


@dataclass(eq=False)
class Kept:
    """A batch: its sequences, and the step that it began last."""

    handle: c_void_p
    members: list
    step: Open | None = None


@dataclass(eq=False)
class Host:
    """What is kept besides sequences and steps: batches, and (handle, rows) of sequences in host memory."""

    batches: list = field(default_factory=list)
    swapped: list = field(default_factory=list)


@pytest.mark.hunt(share=2, short=6)
def test_steps_of_c_are_whole_or_have_not_been(hunt):
    api = capi.Api()
    for rng in hunt.rounds():
        fields = {"pages": PAGES, "page_size": PAGE_SIZE, "kv_heads": 1, "head_dim": 64, "num_layers": LAYERS}
        cache = api.make("cache_create", capi.options(capi.CacheOptions, device_type=1, **fields))
        live, steps, host = [], [], Host()
        for _ in range(60):
            hunt.count(call(api, rng, cache, live, steps, host))
            check(api, cache, live, host)
        for step in steps:
            assert api.table.step_destroy(step.handle) == 0
        for batch in host.batches:
            assert api.table.batch_destroy(batch.handle) == 0
        for handle, _ in host.swapped:
            assert api.table.swapped_destroy(handle) == 0
        assert api.ask("cache_query", cache, capi.CacheInfo).num_free_pages == PAGES - len(pages_of(api, live))
        for seq in live:
            assert api.table.sequence_destroy(seq.handle) == 0
        assert api.ask("cache_query", cache, capi.CacheInfo).num_free_pages == PAGES
        api.cache_destroy(cache)


KINDS = ["create", "fork", "truncate", "destroy", "begin", "drop", "commit", "commit", *["write"] * 4]
OF_BATCHES = ["batch", "use", "let_go", *["step"] * 3, "swap_out", "swap_in"]


def call(api, rng, cache, live, steps, host):
    """One call, which the model allows or not; what it leaves is put down."""
    kind = str(rng.choice(KINDS + OF_BATCHES))
    if kind == "create" or not live:
        live.append(Live(api.make("sequence_create", cache)))
        return "create"
    seq = live[int(rng.integers(len(live)))]
    if kind == "begin":
        return begin(api, rng, cache, live, steps)
    if kind in OF_BATCHES:
        return globals()[kind](api, rng, cache, live, steps, host)
    if kind == "fork":
        if any(seq is member for step in steps if not step.has_ended for member, *_ in step.members):
            return "none"
        live.append(Live(api.make("sequence_fork", seq.handle), list(seq.rows)))
    elif kind == "truncate":
        length = int(rng.integers(0, seq.rows[0].shape[1] + 1))
        api.sequence_truncate(seq.handle, length)
        seq.rows, seq.version = [rows[:, :length] for rows in seq.rows], seq.version + 1  # also where none goes
    elif kind == "destroy":
        live.remove(seq)
        api.sequence_destroy(seq.handle)
    elif steps:
        step = steps[int(rng.integers(len(steps)))]
        return {"drop": drop, "commit": commit, "write": write}[kind](api, rng, live, steps, step)
    return kind


def begin(api, rng, cache, live, steps):
    chosen = any_of(rng, live)
    counts, handle = [int(rng.integers(0, 5)) for _ in chosen], c_void_p()
    is_right = are_distinct(chosen) and are_free(chosen, steps)
    status = api.table.step_create(*given(cache, chosen), (c_int64 * len(counts))(*counts), None, byref(handle))
    return begun(api, status, handle, chosen, counts, steps, is_right)


def begun(api, status, handle, chosen, counts, steps, is_right):
    """A step that began, put down; or why it did not."""
    if status == 0:
        assert is_right
        members = [(seq, seq.version, count) for seq, count in zip(chosen, counts, strict=True)]
        steps.append(Open(handle, members))
        return "begin"
    say(api, status)
    assert handle.value is None
    assert not is_right or capi.STATUSES[status] == "CACHE_FULL"
    return f"refused: {capi.STATUSES[status]}"


def any_of(rng, live):
    return [live[i] for i in rng.integers(0, len(live), int(rng.integers(1, 3)))]


def given(cache, chosen):
    return cache, (c_void_p * len(chosen))(*(seq.handle.value for seq in chosen)), len(chosen)


def are_distinct(chosen):
    return len({*map(id, chosen)}) == len(chosen)


def are_free(chosen, steps):
    """Whether none is in a step that is open."""
    taken = {id(seq) for step in steps if not step.has_ended for seq, *_ in step.members}
    return taken.isdisjoint(map(id, chosen))


def batch(api, rng, cache, live, steps, host):
    chosen, handle = any_of(rng, live), c_void_p()
    status = api.table.batch_create(*given(cache, chosen), None, byref(handle))
    if status == 0:
        assert are_distinct(chosen)
        host.batches.append(Kept(handle, chosen))
        return "batch"
    say(api, status)
    assert capi.STATUSES[status] == ("STEP" if are_distinct(chosen) else "SHAPE")
    assert not are_distinct(chosen) or not are_free(chosen, steps)
    return f"refused: {capi.STATUSES[status]}"


def use(api, rng, cache, live, steps, host):
    if not host.batches:
        return "none"
    kept, chosen = host.batches[int(rng.integers(len(host.batches)))], any_of(rng, live)
    status = api.table.batch_use(kept.handle, *given(cache, chosen)[1:])
    if status == 0:
        assert len(chosen) == len(kept.members) and are_distinct(chosen) and not is_in_step(kept, steps)
        kept.members = chosen
        return "use"
    say(api, status)
    if is_in_step(kept, steps):
        assert capi.STATUSES[status] == "STEP"
    elif len(chosen) != len(kept.members) or not are_distinct(chosen):
        assert capi.STATUSES[status] in ("SHAPE", "STEP")
    else:
        assert capi.STATUSES[status] == "STEP" and not are_free(chosen, steps)
    return f"refused: {capi.STATUSES[status]}"


def is_in_step(kept, steps):
    return kept.step is not None and kept.step in steps and not kept.step.has_ended


def step(api, rng, cache, live, steps, host):
    if not host.batches:
        return "none"
    kept, handle = host.batches[int(rng.integers(len(host.batches)))], c_void_p()
    counts = [int(rng.integers(0, 5)) for _ in kept.members]
    is_right = are_free(kept.members, steps) and all(seq in live for seq in kept.members)
    status = api.table.batch_step(kept.handle, (c_int64 * len(counts))(*counts), byref(handle))
    found = begun(api, status, handle, kept.members, counts, steps, is_right)
    if status == 0:
        kept.step = steps[-1]
        return "step of a batch"
    return found


def let_go(api, rng, cache, live, steps, host):
    """A batch is destroyed; a step of it that is open goes on."""
    if len(host.batches) > 1:
        assert api.table.batch_destroy(host.batches.pop(0).handle) == 0
    return "let_go"


def swap_out(api, rng, cache, live, steps, host):
    chosen, handle = live[int(rng.integers(len(live)))], c_void_p()
    api.cache_swap_out(cache, chosen.handle, None, byref(handle))
    host.swapped.append((handle, list(chosen.rows)))
    return "swap_out"


def swap_in(api, rng, cache, live, steps, host):
    if not host.swapped:
        return "none"
    (handle, rows), back = host.swapped[int(rng.integers(len(host.swapped)))], c_void_p()
    status = api.table.cache_swap_in(cache, handle, None, byref(back))
    if status == 0:
        live.append(Live(back, list(rows)))
        return "swap_in"
    say(api, status)
    assert capi.STATUSES[status] == "CACHE_FULL" and back.value is None
    return "refused: CACHE_FULL"


def write(api, rng, live, steps, step):
    layer, count = int(rng.integers(-1, LAYERS + 1)), sum(count for *_, count in step.members)
    rows = new_tokens(rng, count, kv_heads=1)
    status = api.table.step_append(step.handle, layer, *(pointer(capi.tensor(x)) for x in rows), None, None)
    assert (status == 0) == (0 <= layer < LAYERS and step.is_current(live))
    if status == 0:
        step.written[layer] = rows
        return "write"
    say(api, status)
    return f"refused: {capi.STATUSES[status]}"


def commit(api, rng, live, steps, step):
    if not step.written and not step.has_ended:
        return "none"  # it would be taken at its word, and its rows hold anything
    is_right = step.is_current(live) and len(step.written) == LAYERS
    status = api.table.step_commit(step.handle)
    assert (status == 0) == is_right and (status == 0 or capi.STATUSES[status] == "STEP")
    step.has_ended = True
    if status != 0:
        say(api, status)
        return "refused: STEP"
    first = 0
    for seq, _, count in step.members:
        share = [step.written[layer][:, first : first + count] for layer in range(LAYERS)]
        seq.rows = [np.concatenate(pair, axis=1) for pair in zip(seq.rows, share, strict=True)]
        seq.version, first = seq.version + 1, first + count
    return "commit"


def drop(api, rng, live, steps, step):
    steps.remove(step)
    assert api.table.step_destroy(step.handle) == 0
    return "drop"


def pages_of(api, live):
    """Ids of the pages that sequences have."""
    found = set()
    for seq in live:
        ids, count = (capi.c_int32 * PAGES)(), c_int64()
        api.sequence_pages(seq.handle, ids, PAGES, byref(count))
        found.update(ids[: count.value])
    return found


def check(api, cache, live, host):
    """Every sequence holds its rows in every layer, and those in host memory are as long as they were."""
    for handle, rows in host.swapped:
        assert api.ask("swapped_query", handle, capi.SwappedInfo).length == rows[0].shape[1]
    for seq in live:
        info = api.ask("sequence_query", seq.handle, capi.SequenceInfo)
        assert info.length == seq.rows[0].shape[1]
        for layer, rows in enumerate(seq.rows):
            found = np.zeros_like(rows)
            k, v = (pointer(capi.tensor(x)) for x in found)
            api.layer_gather(cache, layer, byref(seq.handle), 1, k, v, 0, None)
            np.testing.assert_array_equal(found.view(np.uint16), rows.view(np.uint16))
