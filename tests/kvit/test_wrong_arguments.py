"""Wrong arguments of every public class and function: kvit's own words say what would do, never Python's alone."""

import inspect
import re

import numpy as np
import pytest

import kvit
from support.right_calls import RIGHT, Scene


class Mine(kvit.CacheView):
    def __init__(self):
        pass  # and calls no __init__ of kvit's


WRONG = [
    None, "a", b"a", "é", 5.5, -1, 2**70, -(2**70), float("nan"), 1j, True, object(), object, [], (), {}, [None], ["a"],
    (1, "b"), [[]], {"a": 1}, {1}, range(3), slice(3), len, Ellipsis, np.float64(2), np.int8(-3), np.array(3),
    np.zeros(3), np.array(["a"]), np.array([None]), np.zeros((2, 0)), np.dtype("f2"), kvit, kvit.Rope(64), Mine(),
    *[kind.__new__(kind) for kind in (kvit.Buffer, kvit.Tensor, kvit.Stream, kvit.Event, kvit.Graph, kvit.Device,
                                      kvit.CacheView, kvit.PageTable, kvit.PagedCache, kvit.Attention, kvit.Append,
                                      kvit.Gather, kvit.Rope, kvit.TurboMindBlocks)],
]  # fmt: skip

# Python's own words, which name no argument and no next step. (Cython's "Argument 'stream' has incorrect type (expected
# kvit._native.stream.Stream, got list)" name all that there is to say.)
PYTHONS = re.compile(
    r"an integer is required|cannot be interpreted as an integer|object is not (iterable|callable|subscriptable)"
    r"|has no len|must be real number|unsupported operand|has no attribute|not supported between|invalid literal"
    r"|could not convert|'\w+' object |must be str|must be a string|too large to convert|cannot convert"
    r"|unhashable|not enough values|too many values|index out of range|bytes-like|keywords must be strings"
    r"|exceeds the limit|can't convert|must be called with|ambiguous"
)


def complaint(call, arguments):
    """What is wrong with how a wrong argument was refused, or None."""
    try:
        call(**arguments)
    except (kvit.KvitError, TypeError, ValueError) as error:
        words = str(error)
        if not isinstance(error, kvit.KvitError) and (not words or PYTHONS.search(words)):
            return f"{type(error).__name__}: {words}"
    except MemoryError:
        pass
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", RIGHT)
def test_right_arguments_are_right(name):
    call, arguments = RIGHT[name](Scene())
    call(**arguments)


@pytest.mark.parametrize("name", RIGHT)
def test_wrong_arguments_are_refused_in_kvits_words(name):
    found = {}
    for argument in RIGHT[name](Scene())[1]:
        for wrong in WRONG:
            call, arguments = RIGHT[name](Scene())
            said = complaint(call, arguments | {argument: wrong})
            if said is not None:
                found.setdefault((argument, said), []).append(type(wrong).__name__)
    assert found == {}


def signature_of(name):
    found = kvit
    for part in name.split("."):
        found = getattr(found, part)
    return set(inspect.signature(found).parameters) - {"self"}


def test_every_public_call_with_arguments_is_tried():
    tried = {name.split(" ")[0] for name in RIGHT}
    missing = []
    for name in kvit.__all__:
        thing = getattr(kvit, name)
        if inspect.isclass(thing) and issubclass(thing, Exception):
            continue
        calls = (
            [name]
            if not inspect.isclass(thing)
            else [
                name,
                *(f"{name}.{method}" for method in dir(thing) if method == "__call__" or not method.startswith("_")),
            ]
        )
        for call in calls:
            try:
                parameters = signature_of(call)
            except (TypeError, ValueError):  # a property, or a compiled class, whose __init__ has no signature
                continue
            if parameters and call not in tried:
                missing.append(call)
    # Buffer's own are Tensor's; a LayerSpec is looked at by the cache, and the others are for kvit's own use.
    inherited = [
        "Batch.rows_of", "Batch.stream_of", "Buffer.from_pointer", "Buffer.wrap", "CacheLayer", "CopyPages.prepare",
        "LayerSpec", "LayerSpec.index", "MixedCache.members_of", "MixedSequence", "MixedSequence.begin_ageing",
        "MixedSequence.settle", "MixedStep", "PagePool.becoming", "PagePool.enter", "PagePool.moves_to_front",
        "PagePool.next_free", "PagePool.renaming", "PagePool.shifted", "PagePool.take_free", "PagedCache.only_place",
        "Sequence", "Sequence.outside", "Sequence.share_with", "Shift.prepare", "Step", "Step.rows_of",
        "Step.stream_of",
    ]  # fmt: skip
    assert sorted(missing) == inherited


@pytest.mark.parametrize("name", RIGHT)
def test_every_parameter_is_tried(name):
    try:
        parameters = signature_of(name.split(" ")[0])
    except (TypeError, ValueError):
        return
    tried = set(RIGHT[name](Scene())[1])
    assert tried == parameters or " of " in name or name == "Attention.explain"


NEVER_UNMADE = (kvit.Sequence, kvit.PagePool)  # which no __new__ leaves without what they need
CLASSES = [
    thing for name in kvit.__all__
    if inspect.isclass(thing := getattr(kvit, name)) and not issubclass(thing, (Exception, *NEVER_UNMADE))
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_what_an_unmade_object_cannot_do_is_said(kind):
    found = []
    for unmade in (kind.__new__(kind), type("Mine", (kind,), {"__init__": lambda self: None})()):
        assert repr(unmade) and str(unmade)
        for name in dir(kind):
            if name.startswith("_") and name not in ("__call__", "__len__", "__getitem__", "__dlpack__", "__array__"):
                continue
            right = RIGHT.get(f"{kind.__name__}.{name}")
            arguments = {} if right is None else right(Scene())[1]

            def use(name=name, unmade=unmade, arguments=arguments):
                thing = getattr(unmade, name)
                return thing(**arguments) if callable(thing) and (arguments or name in FREE) else thing

            said = complaint(use, {})
            if said is not None:
                found.append((name, said))
    assert found == []


FREE = ("check", "explain", "explain_launch", "numpy", "span", "synchronize", "sequence", "defragment", "launch")
