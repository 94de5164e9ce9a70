"""Which output may be which input: what is allowed gives the bits of separate memory, all else is refused."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, make_case, new_cache, to_device

HEADS, KV_HEADS, DIM = 4, 2, 64


def part_of(buffer, byte, shape, dtype="bfloat16", strides=None):
    """A tensor in the memory of another, from byte `byte` on."""
    return kvit.Tensor.from_pointer(buffer.pointer + byte, shape, dtype, buffer.device, strides=strides, owner=buffer)


def same_bits(found, wanted):
    np.testing.assert_array_equal(found.view(np.uint8), wanted.view(np.uint8))


class Scene:
    """Three sequences with two new tokens each, their queries, and operations on their cache."""

    def __init__(self, rng, device, lengths=(40, 5, 17)):
        self.case = make_case(rng, list(lengths), kv_heads=KV_HEADS, head_dim=DIM, device=device)
        self.view, self.table, self.device = self.case.view, self.case.page_table, device
        self.query_indptr = to_device(np.array([0, 2, 4, 6], np.int32), device)
        # Queries, keys and values of a token in one row, as a projection leaves them.
        self.packed = to_device(rng.standard_normal((6, HEADS + 2 * KV_HEADS, DIM)).astype(BFLOAT16), device)
        row = self.packed.strides[0]
        self.q = part_of(self.packed, 0, (6, HEADS, DIM), strides=(row, 2 * DIM, 2))
        self.k, self.v = (
            part_of(self.packed, 2 * DIM * head, (6, KV_HEADS, DIM), strides=(row, 2 * DIM, 2))
            for head in (HEADS, HEADS + KV_HEADS)
        )

    def heads(self, first, count):
        """What the packed tensor holds of some heads."""
        return np.ascontiguousarray(self.packed.numpy()[:, first : first + count])

    def new(self, shape=(6, HEADS, DIM), dtype="bfloat16"):
        return kvit.Buffer.empty(shape, dtype, self.device)

    def in_table(self, shape, dtype="bfloat16"):
        """Memory of the table's numbers, as something else: too short, but that is not looked at."""
        return kvit.Tensor.from_pointer(self.table.pages.pointer & ~15, shape, dtype, self.device, owner=self.table)


@pytest.fixture
def scene(rng, device):
    return Scene(rng, device)


def all_bytes(tensor):
    """A copy of what lies between a tensor's lowest byte and its highest."""
    low, high = tensor.span()
    copy = kvit.Buffer.empty(high - low, "uint8", tensor.device)
    copy.copy_from(kvit.Tensor.from_pointer(low, (high - low,), "uint8", tensor.device, owner=tensor))
    return copy.numpy()


@pytest.mark.parametrize("is_split", [False, True])
def test_attention_may_replace_its_queries(rng, device, is_split):
    # Heads that several CTAs share: each reads the queries, and one of them writes in their place.
    scene = Scene(rng, device, [1200, 5, 700])
    attend = kvit.Attention(scene.view, HEADS, tokens_per_sequence=2)
    if is_split:
        tile = attend.kernel.facts["tile_tokens"]
        attend = kvit.Attention(scene.view, HEADS, tokens_per_sequence=2, split_tokens=tile)
    lse, wanted_lse = scene.new((6, HEADS), "float32"), scene.new((6, HEADS), "float32")
    wanted = attend(scene.q, scene.view, scene.table, out=scene.new(), lse=wanted_lse)
    attend(scene.q, scene.view, scene.table, out=scene.q, lse=lse)
    attend.check()
    same_bits(scene.heads(0, HEADS), wanted.numpy())
    same_bits(lse.numpy(), wanted_lse.numpy())


def test_attention_may_write_beside_its_queries(scene):
    attend = kvit.Attention(scene.view, HEADS, tokens_per_sequence=2)
    wanted = attend(scene.q, scene.view, scene.table, out=scene.new())
    beside = part_of(scene.packed, 2 * DIM * HEADS, (6, HEADS, DIM), strides=scene.q.strides)
    attend(scene.q, scene.view, scene.table, out=beside)
    same_bits(scene.heads(HEADS, HEADS), wanted.numpy())


def test_attention_refuses_every_other_overlap(scene):
    attend = kvit.Attention(scene.view, HEADS, tokens_per_sequence=2)
    memory = scene.new((12, HEADS, DIM))
    out, row = part_of(memory, 0, (6, HEADS, DIM)), 2 * DIM * HEADS
    sums = scene.new((6, HEADS), "float32")
    for match, changed in (
        ("out lies over q, and not row for row", {"q": part_of(memory, row, (6, HEADS, DIM))}),
        ("out lies over q, and not row for row", {"q": part_of(memory, 2 * DIM, (6, HEADS, DIM))}),
        ("out is written and lies over view.k", {"out": part_of(scene.view.k, 0, (6, HEADS, DIM))}),
        ("out is written and lies over view.v", {"out": part_of(scene.view.v, 1024, (6, HEADS, DIM))}),
        # A table is smaller than an output, so that on a GPU what lies behind it may be named first.
        ("out (is written and )?lies over", {"out": scene.in_table((6, HEADS, DIM))}),
        ("lse is written and lies over out", {"lse": part_of(memory, 64, (6, HEADS), "float32")}),
        ("lse is written and lies over q", {"lse": part_of(scene.packed, 64, (6, HEADS), "float32")}),
        ("lse is written and lies over view.k", {"lse": part_of(scene.view.k, 64, (6, HEADS), "float32")}),
        ("lse is written and lies over query_indptr", {"lse": part_of(scene.query_indptr, 0, (6, HEADS), "float32")}),
        ("out has shape .* lie over each other", {"out": part_of(memory, 0, (6, HEADS, DIM), strides=(0, 128, 2))}),
        ("lse has shape .* lie over each other", {"lse": part_of(sums, 0, (6, HEADS), "float32", strides=(4, 4))}),
    ):
        given = {"q": scene.q, "out": out, "lse": sums, "query_indptr": scene.query_indptr, **changed}
        with pytest.raises(kvit.LayoutError, match=match):
            attend(given.pop("q"), scene.view, scene.table, **given)


def test_append_may_turn_queries_in_one_packed_tensor(scene):
    append = kvit.Append(scene.view, rope=kvit.Rope(DIM))
    turned = scene.new()
    append(scene.k, scene.v, scene.view, scene.table, q=scene.q, q_out=turned)
    written = all_bytes(scene.view.k), all_bytes(scene.view.v)
    append(scene.k, scene.v, scene.view, scene.table, q=scene.q)
    append.check()
    same_bits(scene.heads(0, HEADS), turned.numpy())
    for pool, wanted in zip((scene.view.k, scene.view.v), written, strict=True):
        same_bits(all_bytes(pool), wanted)


def test_append_refuses_every_other_overlap(scene):
    append = kvit.Append(scene.view, rope=kvit.Rope(DIM))
    memory = scene.new((12, HEADS, DIM))
    below, above = (part_of(memory, byte, (6, HEADS, DIM)) for byte in (0, 128))
    for match, changed in (
        ("k lies in view.k", {"k": part_of(scene.view.k, 0, (6, KV_HEADS, DIM))}),
        ("v lies in view.k", {"v": part_of(scene.view.k, 512, (6, KV_HEADS, DIM))}),
        ("k_bias lies in view.v", {"k_bias": part_of(scene.view.v, 0, (KV_HEADS, DIM))}),
        ("positions lies in view.k", {"positions": part_of(scene.view.k, 0, (6,), "int32")}),
        ("query_indptr lies in view.v", {"query_indptr": part_of(scene.view.v, 0, (4,), "int32")}),
        ("q_out is written and lies over k", {"q": scene.new(), "q_out": part_of(scene.packed, 0, (6, HEADS, DIM))}),
        ("q_out is written and lies over view.k", {"q_out": part_of(scene.view.k, 0, (6, HEADS, DIM))}),
        ("q_out lies over q, and not row", {"q": below, "q_out": above}),
        ("q_out has shape .* lie over each other", {"q_out": part_of(memory, 0, (6, HEADS, DIM), strides=(0, 128, 2))}),
    ):
        given = {"k": scene.k, "v": scene.v, "q": scene.q, **changed}
        with pytest.raises(kvit.LayoutError, match=match):
            append(given.pop("k"), given.pop("v"), scene.view, scene.table, **given)


def test_a_plain_append_looks_for_overlap_too(scene):
    append = kvit.Append(scene.view)
    with pytest.raises(kvit.LayoutError, match="k lies in view.k"):
        append(part_of(scene.view.k, 0, (6, KV_HEADS, DIM)), scene.v, scene.view, scene.table)
    pages = part_of(scene.view.k, 0, scene.table.pages.shape, "int32")
    with pytest.raises(kvit.LayoutError, match="table.pages lies in view.k"):
        append(scene.k, scene.v, scene.view, kvit.PageTable(pages, lengths=scene.table.lengths))


def test_gather_may_fill_one_packed_tensor(scene):
    gather = kvit.Gather(scene.view)
    wanted = [scene.new((6, KV_HEADS, DIM)) for _ in "kv"]
    gather(scene.view, scene.table, out=wanted)
    gather(scene.view, scene.table, out=(scene.k, scene.v))
    same_bits(scene.heads(HEADS, KV_HEADS), wanted[0].numpy())
    same_bits(scene.heads(HEADS + KV_HEADS, KV_HEADS), wanted[1].numpy())


def test_gather_refuses_every_other_overlap(scene):
    gather = kvit.Gather(scene.view)
    shape = (6, KV_HEADS, DIM)
    memory = scene.new((12, KV_HEADS, DIM))
    below, above = (part_of(memory, byte, shape) for byte in (0, 256))
    for match, changed in (
        ("k is written and lies over v", {"k": below, "v": above}),
        ("k is written and lies over view.v", {"k": part_of(scene.view.v, 0, shape)}),
        ("v is written and lies over view.k", {"v": part_of(scene.view.k, 4096, shape)}),
        ("v is written and lies over table.pages", {"v": scene.in_table(shape)}),
        ("k is written and lies over query_indptr", {"query_indptr": part_of(memory, 0, (4,), "int32"), "k": below}),
        ("v has shape .* lie over each other", {"v": part_of(memory, 0, shape, strides=(0, 128, 2))}),
    ):
        given = {"k": scene.new(shape), "v": scene.new(shape), **changed}
        with pytest.raises(kvit.LayoutError, match=match):
            gather(scene.view, scene.table, out=(given.pop("k"), given.pop("v")), **given)


@pytest.mark.parametrize("part", [0, 1, 17])
@pytest.mark.parametrize("stacked", [False, True])
def test_merge_may_replace_a_part(rng, device, part, stacked):
    # 300 rows are several CTAs, and 130 channels three words of a lane.
    shape = (30, 10, 130)
    outs, lses = rng.standard_normal((18, *shape)).astype(np.float16), rng.standard_normal((18, *shape[:2]))
    lses = lses.astype(np.float32)
    outs, lses = to_device(outs, device), to_device(lses, device)
    if not stacked:
        outs, lses = [outs[i] for i in range(18)], [lses[i] for i in range(18)]
    wanted = kvit.merge_states(outs, lses)
    found = kvit.merge_states(outs, lses, out=outs[part], lse=lses[part])
    for a, b in zip(found, wanted, strict=True):
        same_bits(a.numpy(), b.numpy())


def test_a_merge_may_replace_the_lse_of_a_side_alone(device):
    # An LSE that is stored before all lanes have read the old one weighs their channels otherwise: 2, then 1.667.
    for place in (0, 1):
        sides = [to_device(np.full((8, 4, 64), x, np.float16), device) for x in (1, 3)]
        lses = [to_device(np.zeros((8, 4), np.float32), device) for _ in range(2)]
        out, lse = kvit.merge_state(sides[0], lses[0], sides[1], lses[1], lse=lses[place])
        assert (out.numpy() == 2).all()
        assert lse is lses[place] and np.allclose(lse.numpy(), np.log(2))


def test_merge_refuses_every_other_overlap(rng, device):
    shape = (6, 4, 64)
    memory = kvit.Buffer.empty((20, 4, 64), "float16", device)
    sums = kvit.Buffer.empty((20, 4), "float32", device)
    a, b = (part_of(memory, byte, shape, "float16") for byte in (0, 6 * 512))
    lse_a, lse_b = (part_of(sums, byte, (6, 4), "float32") for byte in (0, 6 * 16))
    good = kvit.Buffer.empty(shape, "float16", device)
    for match, out, lse in (
        ("out lies over out_a, and not row for row", part_of(memory, 512, shape, "float16"), None),
        ("out lies over out_b, and not row for row", part_of(memory, 10 * 512, shape, "float16"), None),
        ("out lies over out_a, and not row for row", part_of(memory, 0, shape, "float32"), None),
        ("out is written and lies over lse", good, part_of(good, 0, (6, 4), "float32")),
        ("lse is written and lies over out_a", good, part_of(memory, 0, (6, 4), "float32")),
        ("lse lies over lse_b, and not row for row", good, part_of(sums, 6 * 16 + 4, (6, 4), "float32")),
        ("lse has shape .* lie over each other", good, part_of(sums, 16 * 16, (6, 4), "float32", strides=(0, 4))),
    ):
        with pytest.raises(kvit.LayoutError, match=match):
            kvit.merge_state(a, lse_a, b, lse_b, out=out, lse=lse)
    stacked, stacked_lse = memory[:18].numpy().reshape(3, *shape), sums[:18].numpy().reshape(3, 6, 4)
    stacked, stacked_lse = to_device(stacked, device), to_device(stacked_lse, device)
    with pytest.raises(kvit.LayoutError, match=r"out lies over outs\[1\], and not row for row"):
        kvit.merge_states(stacked, stacked_lse, out=part_of(stacked, 7 * 512, shape, "float16"))
    with pytest.raises(kvit.LayoutError, match=r"lse lies over lses\[2\], and not row for row"):
        kvit.merge_states(stacked, stacked_lse, lse=part_of(stacked_lse, 12 * 16 + 4, (6, 4), "float32"))


def test_page_lists_lie_apart_from_what_is_written(device):
    view = new_cache(device).view
    other = new_cache(device, layout="NHD").view
    pages = to_device(np.arange(2, dtype=np.int32), device)
    inside = part_of(view.k, 0, (2,), "int32")
    with pytest.raises(kvit.LayoutError, match="target lies in view.k"):
        kvit.CopyPages(view)(view, pages, inside)
    with pytest.raises(kvit.LayoutError, match="chains lies in view.v"):
        kvit.CopyPages(view)(view, pages, pages, chains=part_of(view.v, 0, (2,), "int32"))
    with pytest.raises(kvit.LayoutError, match="source_pages lies in target.k"):
        kvit.ConvertPages(other, view)(other, view, source_pages=inside, target_pages=pages)


def pools_that_meet(device):
    """(words of the refusal, view): pools over each other, shifted by a row, interleaved wrongly, rows in one place."""
    memory = kvit.Buffer.empty((8, KV_HEADS, 16, DIM), "bfloat16", device)
    memory.fill_bytes(0)
    shape, row = (4, KV_HEADS, 16, DIM), 2 * DIM
    whole = part_of(memory, 0, shape)
    one_place = part_of(memory, 0, shape, strides=(KV_HEADS * row, row, 0, 2))
    for match, k, v in (
        ("view.v lies over view.k", whole, whole),
        ("view.v lies over view.k", whole, part_of(memory, 16 * row, shape)),
        ("view.k has shape .* rows that the call writes lie over each other", one_place, part_of(memory, 4096, shape)),
    ):
        yield match, kvit.CacheView(k, v, layout="HND", page_size=16)


def test_a_cache_whose_rows_lie_over_each_other_is_not_written(scene, device):
    pages, rows = to_device(np.arange(2, dtype=np.int32), device), scene.new((6, KV_HEADS, DIM))
    for match, view in pools_that_meet(device):
        for call in (
            lambda view=view: kvit.Append(view)(rows, rows, view, scene.table),
            lambda view=view: kvit.Append(view, rope=kvit.Rope(DIM))(rows, rows, view, scene.table, q=scene.q),
            lambda view=view: kvit.CopyPages(view)(view, pages[:1], pages[1:]),
        ):
            with pytest.raises(kvit.LayoutError, match=match):
                call()
        assert not all_bytes(view.k).any()


def test_a_cache_whose_rows_lie_over_each_other_may_be_read(scene, device):
    for _, view in pools_that_meet(device):
        table = kvit.PageTable(to_device(np.zeros((3, 1), np.int32), device), lengths=scene.table.lengths)
        assert kvit.Attention(view, HEADS)(scene.new((3, HEADS, DIM)), view, table).shape == (3, HEADS, DIM)
