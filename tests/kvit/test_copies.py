"""Copies of kvit's objects: right, or refused by name. What is counted or owned never gets a second owner unseen."""

import copy
import pickle

import numpy as np
import pytest

import kvit
from kvit._native.context import Device
from support.caches import BFLOAT16

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
SHAPE = (4, 16, 2, 64)


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


def owners():
    """One of each class that owns memory, pages, or something of the driver, or that stands for such."""
    cache = kvit.PagedCache(8, 4, 1, 64, device="host")
    sequence = cache.sequence()
    sequence.append(*np.zeros((2, 5, 1, 64), BFLOAT16))
    stream = kvit.Stream("host")
    with kvit.Graph.capture(stream) as graph:
        pass
    k, v = np.zeros((2, *SHAPE), BFLOAT16)
    view = kvit.CacheView(k, v, kv="bfloat16")
    lengths = np.zeros(1, np.int32)
    vllm = kvit.VllmPages(np.zeros((4, 2, 8, 16, 8), BFLOAT16), np.zeros((4, 2, 64, 16), BFLOAT16), kv="bfloat16")
    return {
        "PagedCache": cache,
        "Sequence": sequence,
        "PagePool": cache.pool,
        "Step": cache.step([cache.sequence()], 0),
        "Batch": kvit.Batch(cache, [sequence]),
        "Buffer": kvit.Buffer.empty((4,), "float32", "host"),
        "Tensor": kvit.Tensor.wrap(k, "bfloat16"),
        "Stream": stream,
        "Event": kvit.Event("host"),
        "Graph": graph,
        "Attention": kvit.Attention(view, 2),
        "Append": kvit.Append(view),
        "Gather": kvit.Gather(view),
        "CopyPages": kvit.CopyPages(view),
        "ConvertPages": kvit.ConvertPages(view, vllm),
        "CacheView": view,
        "VllmPages": vllm,
        "TurboMindBlocks": kvit.TurboMindBlocks(
            np.zeros((4, 1 << 16), np.uint8), page_size=16, kv_heads=2, head_dim=64
        ),
        "PageTable": kvit.PageTable(np.zeros((1, 2), np.int32), lengths=lengths),
        "FaultRecord": kvit.Append(view).faults,
    }


@pytest.mark.parametrize("name", owners())
def test_an_owner_is_neither_copied_nor_pickled(name, copied):
    made = owners()
    with pytest.raises(TypeError, match=f"^a kvit {name} can be neither copied nor pickled: "):
        copied(made[name])
    sequence, cache = made["Sequence"], made["PagedCache"]
    assert len(sequence) == 5 and cache.num_free_pages == 6
    sequence.free()
    assert cache.num_free_pages == 8


def test_a_sequence_is_made_by_its_cache_alone():
    sequence = owners()["Sequence"]
    for make in (
        kvit.Sequence,
        lambda *a: kvit.Sequence.__new__(kvit.Sequence, *a),
        type("Mine", (kvit.Sequence,), {}),
    ):
        with pytest.raises(TypeError, match=r"cache.sequence\(\) does, and sequence.fork\(\) another"):
            make(sequence.cache, 1)
    for name in ("number", "cache"):
        with pytest.raises(AttributeError):
            setattr(sequence, name, 1)
    assert sequence.cache.num_free_pages == 6


def test_there_is_one_device_of_a_name_in_a_copy_too(copied):
    assert copied(Device.of("host")) is Device.of("host")


def test_values_are_copied(copied):
    rope = copied(kvit.Rope(64, 500000.0, rotary_dim=32, interleaved=True))
    assert (rope.head_dim, rope.rotary_dim, rope.steps) == (64, 32, kvit.Rope(64, 500000.0, rotary_dim=32).steps)
    dtype = kvit.Buffer.empty((4,), "bfloat16", "host").dtype
    assert copied(dtype) is dtype
    error = copied(kvit.PageTableError("said", 1, 2, 3))
    assert (str(error), error.sequence, error.slot, error.value) == ("said", 1, 2, 3)
