"""Contexts of the caller and several GPUs: calls run where their memory is, and leave the caller where it was."""

import gc
from contextlib import contextmanager
from ctypes import byref, pointer

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi
from support.caches import make_case, new_cache, new_tokens, poisoned, to_device
from support.tolerances import assert_within, attention_bound

pytestmark = pytest.mark.gpu


@pytest.fixture
def driver():
    from cuda.bindings import driver

    return driver


@pytest.fixture
def second_gpu():
    from kvit._native.driver import num_gpus

    if num_gpus() < 2:
        pytest.skip("needs a second GPU")
    return "cuda:1"


def done(answer):
    """What a driver call gives besides its status, which must be 0."""
    status, *values = answer
    assert status == 0, status
    return values[0] if len(values) == 1 else values


def current(driver):
    return int(done(driver.cuCtxGetCurrent()))


@contextmanager
def pushed(driver, context):
    """A block in which the context is current."""
    done(driver.cuCtxPushCurrent(context))
    try:
        yield int(context)
    finally:
        done(driver.cuCtxPopCurrent())


@contextmanager
def own_context(driver):
    """A context of cuCtxCreate on the first GPU, current in the block."""
    device = done(driver.cuDeviceGet(0))
    try:
        context = done(driver.cuCtxCreate(None, 0, device))
    except TypeError:  # before CUDA 13 it took no parameters of the context
        context = done(driver.cuCtxCreate(0, device))
    try:
        yield int(context)
    finally:
        gc.collect()  # streams go with their context: kvit's must have gone before
        done(driver.cuCtxDestroy(context))


@contextmanager
def green_context(driver):
    """A green context with a part of the first GPU's multiprocessors, current in the block."""
    device = done(driver.cuDeviceGet(0))
    everything = done(driver.cuDeviceGetDevResource(device, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM))
    parts, *_ = done(driver.cuDevSmResourceSplitByCount(1, everything, 0, 16))
    description = done(driver.cuDevResourceGenerateDesc(parts, 1))
    flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    green = done(driver.cuGreenCtxCreate(description, device, flags))
    try:
        with pushed(driver, done(driver.cuCtxFromGreenCtx(green))) as context:
            yield context
            gc.collect()
    finally:
        done(driver.cuGreenCtxDestroy(green))


@contextmanager
def primary_context(driver):
    """The primary context of the first GPU, made current by the caller itself."""
    device = done(driver.cuDeviceGet(0))
    context = done(driver.cuDevicePrimaryCtxRetain(device))
    try:
        with pushed(driver, context) as pointer:
            yield pointer
    finally:
        done(driver.cuDevicePrimaryCtxRelease(device))


def decode(rng, device, stream=None):
    """Append, gather and attention with everything made here, against the reference."""
    cache = new_cache(device)
    sequence = cache.sequence()
    k, v = new_tokens(rng, 20)
    cache.append([sequence], to_device(k, device), to_device(v, device), stream=stream)
    for found, given in zip(cache.gather([sequence], stream=stream), (k, v), strict=False):
        np.testing.assert_array_equal(found.numpy(), given)
    q = rng.standard_normal((1, 4, 64)).astype(k.dtype)
    out = kvit.attention(to_device(q, device), cache, [sequence], stream=stream)
    magnitude = reference.attention(q, k, np.abs(v)).out
    assert_within(out.numpy(), reference.attention(q, k, v).out, attention_bound(magnitude, q.dtype))
    cache.check(stream)


@pytest.mark.parametrize("kind", [own_context, green_context, primary_context])
def test_calls_run_in_the_callers_context_and_leave_it_current(rng, driver, kind):
    with kind(driver) as context:
        decode(rng, "cuda:0")
        decode(rng, "cuda:0", kvit.Stream("cuda:0"))
        assert current(driver) == context


def test_a_graph_is_captured_and_launched_in_the_callers_context(rng, driver):
    with own_context(driver) as context:
        case = make_case(rng, [20, 3], device="cuda:0")
        stream, op, q = kvit.Stream("cuda:0"), kvit.Attention(case.view, 4), case.queries(rng, 2, 4)
        rows, out = to_device(q, "cuda:0"), to_device(poisoned(q.shape, q.dtype), "cuda:0")
        with kvit.Graph.capture(stream) as graph:
            op(rows, case.view, case.page_table, out=out, stream=stream)
        graph.launch()
        stream.synchronize()
        state, bound = case.expect(q)
        assert_within(out.numpy(), state.out, bound)
        assert current(driver) == context
        del graph, op, stream, rows, out, case


@pytest.mark.parametrize("kind", [own_context, green_context, primary_context])
def test_an_operation_launches_by_a_graph_in_whichever_context_is_current(rng, driver, kind):
    # A node of a graph belongs to one context, and the operation to none.
    op = kvit.Attention(new_cache("cuda:0").view, 4, launch="graph")

    def step(op):
        case = make_case(rng, [20, 300], device="cuda:0")
        q, stream = case.queries(rng, 2, 4), kvit.Stream("cuda:0")
        rows, out = to_device(q, "cuda:0"), to_device(poisoned(q.shape, q.dtype), "cuda:0")
        rows.stream.synchronize()
        op(rows, case.view, case.page_table, out=out, stream=stream)
        op.check(stream)
        state, bound = case.expect(q)
        assert_within(out.numpy(), state.out, bound)

    step(op)
    with kind(driver) as context:
        step(op)
        step(op)
        assert current(driver) == context
        del op  # before the context that a graph of it belongs to


def test_c_runs_in_the_callers_context_too(rng, driver):
    api = capi.Api()
    with own_context(driver) as context:
        case = make_case(rng, [20, 3], device="cuda:0")
        q = case.queries(rng, 2, 4)
        rows, out = (to_device(x, "cuda:0") for x in (q, poisoned(q.shape, q.dtype)))
        view, table = api.view(case.view), capi.table_of(case.page_table)
        op = api.op(view, query_heads=4)
        arguments = [pointer(capi.tensor(x)) for x in (rows, out)]
        api.attention(op, view, byref(table), *arguments, None, None, None)
        api.op_check(op, None, None)
        state, bound = case.expect(q)
        assert_within(out.numpy(), state.out, bound)
        assert current(driver) == context
        api.op_destroy(op)
        api.view_destroy(view)


def test_a_gpu_that_is_not_current_is_used_all_the_same(rng, driver, second_gpu):
    decode(rng, second_gpu)
    with primary_context(driver) as context:
        decode(rng, second_gpu)
        decode(rng, second_gpu, kvit.Stream(second_gpu))
        assert current(driver) == context


def test_memory_of_another_gpu_is_refused(rng, second_gpu):
    case, other = (make_case(rng, [20, 3], device=device) for device in ("cuda:0", second_gpu))
    op, append = kvit.Attention(case.view, 4), kvit.Append(case.view)
    q, k = case.queries(rng, 2, 4), case.queries(rng, 2, 2)
    here, there = ([to_device(x, device) for x in (q, k, k)] for device in ("cuda:0", second_gpu))
    for q_, view, table, word in (
        (there[0], case.view, case.page_table, "q is on cuda:1, the call on cuda:0"),
        (here[0], other.view, case.page_table, "cuda:1"),
        (here[0], case.view, other.page_table, "cuda:1"),
    ):
        with pytest.raises(kvit.DeviceError, match=word):
            op(q_, view, table)
    with pytest.raises(kvit.DeviceError, match="cuda:1"):
        append(*there[1:], case.view, case.page_table)
    with pytest.raises(kvit.DeviceError, match="the stream is on cuda:1, the call on cuda:0"):
        op(here[0], case.view, case.page_table, stream=kvit.Stream(second_gpu))
    op(here[0], case.view, case.page_table).numpy()
    op.check()


@pytest.mark.parametrize("ordinal", [0, 1])
def test_a_cuda_array_lies_on_the_gpu_that_its_address_is_of(request, ordinal):
    # The interface does not say: an array that is taken for another GPU's would be read through the wrong one.
    if ordinal:
        request.getfixturevalue("second_gpu")
    buffer = kvit.Buffer.empty((2, 4), "float16", f"cuda:{ordinal}")

    class Array:
        __cuda_array_interface__ = buffer.__cuda_array_interface__

    tensor = kvit.Tensor.wrap(Array())
    assert (tensor.pointer, tensor.device) == (buffer.pointer, f"cuda:{ordinal}")


def test_copies_cross_gpus(rng, second_gpu):
    array = rng.standard_normal((64, 64)).astype(np.float32)
    first, second = kvit.Buffer.from_numpy(array, "cuda:0"), kvit.Buffer.empty(array.shape, "float32", second_gpu)
    second.copy_from(first)
    np.testing.assert_array_equal(second.numpy(), array)
