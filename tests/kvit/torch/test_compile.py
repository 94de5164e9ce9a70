"""kvit's operators inside torch.compile: the same bits as without, in one graph, and what PyTorch asks of operators."""

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")

import torch

import kvit
import kvit.torch
from support.appends import COUNTS, LENGTHS
from support.torch_caches import ONE_NEW

pytestmark = pytest.mark.interop

ROPE = kvit.torch.rope_words(kvit.Rope(64))


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(q, k, v, cache, table, indptr):
    """A layer: append, attention and gather, with work of PyTorch's own around them."""
    q = q * 2
    kvit.torch.append(k, v, cache, table, query_indptr=indptr, q=q, rope=ROPE)
    out, lse = kvit.torch.attention(q, cache, table, query_indptr=indptr, window=20, return_lse=True)
    rows = kvit.torch.gather(cache, table, k.shape[0], query_indptr=indptr, dtype=torch.bfloat16)
    return out + 1, lse, *rows


def arguments(case, counts=COUNTS):
    k, v = case.rows(counts)
    return [case.put(x) for x in (case.random(sum(counts), 6, 64), k, v)]


def copy_of(cache):
    return cache._replace(**{name: x.clone() for name, x in cache._asdict().items() if isinstance(x, torch.Tensor)})


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("pair", [(None, None), ("int8", "int8"), ("float8_e4m3", "float8_e4m3")], ids=str)
def test_a_compiled_step_gives_the_same_bits_and_writes_the_same_cache(make, pair, backend):
    case = make(pair)
    case.fill()
    cache, rows = copy_of(case.tensors), arguments(case)
    want = step(*rows, case.tensors, case.ragged, case.indptr(COUNTS))
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    found = compiled(*rows, cache, case.ragged, case.indptr(COUNTS))
    kvit.torch.check()
    for one, other in zip(found, want, strict=True):
        assert one.shape == other.shape and one.stride() == other.stride() and torch.equal(one, other)
    for name, pool in cache._asdict().items():
        if isinstance(pool, torch.Tensor):
            assert torch.equal(pool.view(torch.uint8), getattr(case.tensors, name).view(torch.uint8)), name


def test_batches_of_other_sizes_need_no_other_graph(make):
    case = make()
    case.fill()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in (COUNTS, [3, 1, 0, 2], [20, 3, 0, 20]):
        rows, cache = arguments(case, counts), copy_of(case.tensors)
        found = compiled(*rows, cache, case.dense, case.indptr(counts))
        with torch._dynamo.config.patch(error_on_recompile=True):
            again = compiled(*rows, copy_of(case.tensors), case.dense, case.indptr(counts))
        want = step(*rows, copy_of(case.tensors), case.dense, case.indptr(counts))
        assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(again, want, strict=True))


def test_calls_of_layers_stay_in_order(make):
    # A cache that is appended to twice and attended to after each: only the order of the calls says what is seen.
    case = make(lengths=ONE_NEW)

    def layers(first, second, cache, table, q):
        kvit.torch.append(*first, cache, table)
        before = kvit.torch.attention(q, cache, table)
        kvit.torch.append(*second, cache, table)
        return before, kvit.torch.attention(q, cache, table)

    case.fill()
    q = case.put(case.random(4, 6, 64))
    rows = [[case.put(case.random(4, 3, 64)) for _ in range(2)] for _ in range(2)]
    cache = copy_of(case.tensors)
    want = layers(*rows, case.tensors, case.dense, q)
    found = torch.compile(layers, fullgraph=True)(*rows, cache, case.dense, q)
    assert not torch.equal(want[0], want[1])
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))


class Layer(torch.nn.Module):
    """A projection whose slices are q, k and v, and pages of K and V side by side in one buffer."""

    def __init__(self, case):
        super().__init__()
        self.projection = torch.nn.Linear(32, 12 * 64, bias=False, dtype=torch.bfloat16, device=case.tensors.k.device)
        self.register_buffer("pages", torch.stack([case.tensors.k, case.tensors.v], dim=1))

    def forward(self, x, table):
        cache = kvit.torch.CacheTensors(self.pages[:, 0], self.pages[:, 1], layout="HND")
        q, k, v = self.projection(x).view(-1, 12, 64).split([6, 3, 3], dim=1)
        kvit.torch.append(k, v, cache, table, q=q, rope=ROPE)  # parts of two tensors are written, in place
        return kvit.torch.attention(q, cache, table)


@torch.no_grad()
def test_a_module_may_keep_the_cache_and_give_slices_of_its_own_tensors(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    layer, x = Layer(case), case.put(case.random(4, 32))
    before = layer.pages.clone()
    want, pages = layer(x, case.dense), layer.pages.clone()
    assert not torch.equal(pages.view(torch.uint8), before.view(torch.uint8))
    for make_one in (lambda: torch.compile(layer, fullgraph=True), lambda: exported(layer, x, case.dense)):
        layer.pages.copy_(before)
        one = make_one()
        layer.pages.copy_(before)
        assert torch.equal(one(x, case.dense), want)
        assert torch.equal(layer.pages.view(torch.uint8), pages.view(torch.uint8))  # bytes: what nobody wrote is NaN


@torch.no_grad()
def test_latent_rows_are_written_in_parts_and_read_whole():
    # MLA: V is the first 512 channels of K, behind which 64 turn. Both views are of the tensor that the graph is given.
    rows = torch.zeros(4, 16, 1, 576, dtype=torch.bfloat16)
    table = kvit.torch.TableTensors(*(torch.tensor(x, dtype=torch.int32) for x in ([[3, 1], [2, 0]], [17, 1])))
    turning, latent = torch.randn(2, 1, 64).bfloat16(), torch.randn(2, 1, 512).bfloat16()
    q = torch.randn(2, 16, 576).bfloat16()

    def layer(q, turning, latent, rows, table):
        kvit.torch.append(turning, latent, kvit.torch.CacheTensors(rows[..., 512:], rows[..., :512]), table, rope=ROPE)
        return kvit.torch.attention(q, kvit.torch.CacheTensors(rows, rows[..., :512]), table, scale=192**-0.5)

    other = rows.clone()
    want = layer(q, turning, latent, rows, table)
    found = torch.compile(layer, fullgraph=True)(q, turning, latent, other, table)
    assert torch.equal(found, want) and torch.equal(other, rows)
    assert torch.equal(found[1], latent[1].expand(16, 512))  # of one token
    assert torch.equal(rows[[1, 2], [0, 0], 0, :512], latent[:, 0])


def exported(layer, x, table):
    """The layer as torch.export has it, on the same buffer."""
    program = torch.export.export(layer, (x, table))
    called = [str(node.target) for node in program.graph.nodes if "kvit" in str(node.target)]
    assert called == ["kvit.append.default", "kvit.attention.default"]
    found = program.module()
    found.pages = layer.pages
    return found


@pytest.mark.parametrize("pair", [(None, None), ("int4", "int4")], ids=str)
@pytest.mark.parametrize("name", ["attention", "attention_lse", "append", "gather"])
def test_operators_are_what_torch_expects_of_operators(make, name, pair):
    # Schemas that tell the truth about what is written, and fakes that tell the truth about shapes: PyTorch's checks.
    case = make(pair)
    case.fill()
    q, k, v = arguments(case)
    cache, table = case.tensors, case.dense
    scales = (cache.k_params, cache.v_params, cache.k_scale, cache.v_scale)
    places = (cache.k, cache.v, table.lengths, table.pages, None)
    words = {"layout": cache.layout, "k_codec": cache.kv[0], "v_codec": cache.kv[1]}
    tensors, others = {
        "attention": ((q, *places, case.indptr(COUNTS), *scales), {}),
        "attention_lse": ((q, *places, case.indptr(COUNTS), *scales), {"window_left": 9}),
        "append": ((k, v, *places, case.indptr(COUNTS), *scales, q), {"rope": ROPE}),
        "gather": ((*places, case.indptr(LENGTHS), *scales), {"tokens": sum(LENGTHS), "dtype": torch.bfloat16}),
    }[name]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    found = torch.library.opcheck(
        getattr(torch.ops.kvit, name).default, tensors, {**words, **others}, test_utils=checks
    )
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.gpu
def test_a_captured_step_runs_again_on_rewritten_memory(make, device):
    case = make()
    case.fill()
    if device == "host":
        pytest.skip("a graph is of work on a GPU")
    rows, indptr = arguments(case), case.indptr(COUNTS)
    held = [x.clone() for x in rows]
    step(*held, copy_of(case.tensors), case.dense, indptr)  # makes the operations
    cache = copy_of(case.tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(*held, cache, case.dense, indptr)
    for _ in range(2):
        new = arguments(case)
        for one, other in zip(held, new, strict=True):
            one.copy_(other)
        want = step(*new, copy_of(case.tensors), case.dense, indptr)
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))
    kvit.torch.check()
