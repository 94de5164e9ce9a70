"""TurboMind's blocks, against a model written byte by byte after that engine's own description."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, poisoned, to_device
from support.stored import full_stored
from support.tolerances import assert_within

PAGE, HEADS, DIM, LAYERS, LAYER = 4, 2, 64, 3, 1
LENGTHS = [10, 0, 5]  # 3, 0 and 2 blocks, the last of each part full
NUM_BLOCKS = 5
KV = ["bfloat16", "int8", "int4"]


class Model:
    """Blocks in two allocations, in no order, and what each byte of them must be: offsets as the engine's block.h has
    them, int4 with the nibbles e0 e2 e4 e6 e1 e3 e5 e7."""

    def __init__(self, kv, dtype=BFLOAT16):
        self.kv, self.dtype = kv, dtype
        bits = {"bfloat16": 16, "int8": 8, "int4": 4}[kv]
        self.token_data, self.token_param = bits * DIM // 8, 0 if bits == 16 else 4
        self.head_data, self.head_param = PAGE * self.token_data, PAGE * self.token_param
        self.layer_bytes = HEADS * 2 * (self.head_data + self.head_param)
        block_bytes = LAYERS * self.layer_bytes
        # Gaps of 16, 32, ... bytes between blocks: no stride fits them.
        self.memory = [np.full(4 * (block_bytes + 160), 0xFF, np.uint8) for _ in range(2)]
        starts = np.cumsum([32, block_bytes + 16, block_bytes + 48])
        self.places = [(1, starts[1]), (0, starts[2]), (0, starts[0]), (1, starts[0]), (0, starts[1])]

    def write(self, block, at, data):
        piece, start = self.places[block]
        self.memory[piece][start + at : start + at + len(data)] = np.frombuffer(data, np.uint8)

    def write_token(self, block, token, k, v):
        """k, v [HEADS, DIM] in the model's dtype."""
        offset = LAYER * self.layer_bytes
        for head in range(HEADS):
            k_data = offset + head * 2 * self.head_data + token * self.token_data
            k_param = offset + HEADS * 2 * self.head_data + head * 2 * self.head_param + token * self.token_param
            rows = ((k[head], k_data, k_param), (v[head], k_data + self.head_data, k_param + self.head_param))
            for row, data, param in rows:
                codes, params = self.encode(row)
                self.write(block, data, codes)
                self.write(block, param, params)

    def encode(self, row):
        if self.kv == "bfloat16":
            return row.tobytes(), b""
        top = {"int8": 255, "int4": 15}[self.kv]
        x = row.astype(np.float32)
        zero = x.min()
        scale = ((x.max() - zero) / np.float32(top)).astype(self.dtype)
        codes = np.clip(np.rint((x - zero) * (np.float32(1) / np.float32(scale))), 0, top).astype(int)
        params = np.array([scale, zero], self.dtype).tobytes()
        if self.kv == "int8":
            return bytes(codes.tolist()), params
        words = []
        for eight in codes.reshape(-1, 8):
            words.append(sum(int(eight[e]) << (4 * i) for i, e in enumerate((0, 2, 4, 6, 1, 3, 5, 7))))
        return np.array(words, "<u4").tobytes(), params

    def write_sequences(self, k, v):
        row = 0
        for first, length in zip((0, 3, 3), LENGTHS, strict=True):
            for token in range(length):
                self.write_token(first + token // PAGE, token % PAGE, k[row], v[row])
                row += 1


class Blocks:
    """The model's memory as it is now, on a device, with the pointer table over it."""

    def __init__(self, model, device, **changes):
        self.memory = [to_device(piece, device) for piece in model.memory]
        addresses = np.array([self.memory[piece].pointer + start for piece, start in model.places], np.int64)
        for block, address in changes.get("addresses", {}).items():
            addresses[block] = address
        self.addresses = to_device(addresses, device)
        self.view = kvit.TurboMindBlocks(
            self.memory, page_size=PAGE, kv_heads=HEADS, head_dim=DIM, kv=model.kv, layer=LAYER, blocks=self.addresses,
            dtype=model.dtype.name,
        )  # fmt: skip
        self.lengths = to_device(np.array(LENGTHS, np.int32), device)
        self.table = self.view.table(to_device(np.array([0, 3, 3, 5], np.int32), device), self.lengths)
        self.query_indptr = to_device(np.cumsum([0, *LENGTHS]).astype(np.int32), device)

    def assert_holds(self, model):
        for got, want in zip(self.memory, model.memory, strict=True):
            np.testing.assert_array_equal(got.numpy(), want)


def tokens(rng, dtype=BFLOAT16):
    return rng.standard_normal((2, sum(LENGTHS), HEADS, DIM)).astype(dtype)


@pytest.mark.parametrize("kv", KV)
def test_append_writes_turbominds_blocks_byte_for_byte(rng, device, kv):
    model = Model(kv)
    blocks, (k, v) = Blocks(model, device), tokens(rng)
    append = kvit.Append(blocks.view)
    append(to_device(k, device), to_device(v, device), blocks.view, blocks.table, query_indptr=blocks.query_indptr)
    append.check()
    model.write_sequences(k, v)
    blocks.assert_holds(model)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_parameters_are_in_the_dtype_of_the_queries(rng, device, dtype):
    model = Model("int4", dtype)
    blocks, (k, v) = Blocks(model, device), tokens(rng, dtype)
    append = kvit.Append(blocks.view)
    append(to_device(k, device), to_device(v, device), blocks.view, blocks.table, query_indptr=blocks.query_indptr)
    model.write_sequences(k, v)
    blocks.assert_holds(model)


def plain_cache(kv, k, v, dtype=BFLOAT16):
    """The same tokens in the reference's pages: page i is block i."""
    cache = reference.Cache.poisoned(NUM_BLOCKS, PAGE, HEADS, DIM, dtype=dtype, k=kv, v=kv)
    table = reference.Table([[0, 1, 2], [], [3, 4]], LENGTHS)
    reference.append(cache, table, k, v, LENGTHS)
    return cache, table


@pytest.mark.parametrize("kv", KV)
def test_gather_and_attention_read_turbominds_blocks(rng, device, kv):
    model, (k, v) = Model(kv), tokens(rng)
    model.write_sequences(k, v)
    blocks = Blocks(model, device)
    cache, table = plain_cache(kv, k, v)
    out = [to_device(poisoned(k.shape, BFLOAT16), device) for _ in range(2)]
    kvit.Gather(blocks.view)(blocks.view, blocks.table, out=out, query_indptr=blocks.query_indptr)
    for got, want in zip(out, reference.gather(cache, table, BFLOAT16)[:2], strict=True):
        np.testing.assert_array_equal(got.numpy(), want)

    q = rng.standard_normal((3, 8, DIM)).astype(BFLOAT16)
    attention = kvit.Attention(blocks.view, 8)
    result = attention(to_device(q, device), blocks.view, blocks.table)
    attention.check()
    stored = [pool.read(*np.divmod(np.arange(NUM_BLOCKS * PAGE), PAGE), np.float64) for pool in cache.stores()]
    parts = np.abs(np.nan_to_num(stored[1])) + (30 if kv != "bfloat16" else 0)
    magnitude = reference.paged_attention(
        q.astype(float),
        reference.Cache(*(x.reshape(NUM_BLOCKS, PAGE, HEADS, DIM) for x in (np.nan_to_num(stored[0]), parts))),
        table,
    ).out
    bound = tolerances.attention_bound(magnitude, BFLOAT16) + tolerances.SCORE_QUANTISED * 2 * magnitude
    assert_within(result.numpy(), reference.paged_attention(q, cache, table).out, bound)


@pytest.mark.parametrize("kv", KV)
def test_blocks_at_a_stride_are_the_same_without_pointers(rng, device, kv):
    model, (k, v) = Model(kv), tokens(rng)
    pool = np.full((NUM_BLOCKS, LAYERS * model.layer_bytes + 64), 0xFF, np.uint8)
    memory = to_device(pool, device)
    shape = {"page_size": PAGE, "kv_heads": HEADS, "head_dim": DIM, "kv": kv}
    view = kvit.TurboMindBlocks(memory, layer=LAYER, **shape)
    assert view.blocks is None and view.layer_bytes == model.layer_bytes
    table = view.table(*(to_device(np.array(x, np.int32), device) for x in ([0, 3, 3, 5], LENGTHS)))
    starts = to_device(np.cumsum([0, *LENGTHS]).astype(np.int32), device)
    kvit.Append(view)(to_device(k, device), to_device(v, device), view, table, query_indptr=starts)
    model.memory, model.places = [pool.reshape(-1)], [(0, i * pool.shape[1]) for i in range(NUM_BLOCKS)]
    model.write_sequences(k, v)
    np.testing.assert_array_equal(memory.numpy(), pool)
    row, param = (model.token_data, model.token_param)
    parts = reference.turbomind_rows(
        pool[3], page_size=PAGE, kv_heads=HEADS, row_bytes=row, param_bytes=param, offset=LAYER * model.layer_bytes
    )
    cache, _ = plain_cache(kv, k, v)
    for part, array in zip(parts, (cache.k, cache.v, cache.k_params, cache.v_params), strict=True):
        if array is not None:
            np.testing.assert_array_equal(part, array[3].view(np.uint8))


@pytest.mark.parametrize("address", [0, 8], ids=["null", "misaligned"])
def test_a_bad_block_is_reported_and_touches_no_other_sequence(rng, device, address):
    model, (k, v) = Model("int8"), tokens(rng)
    blocks = Blocks(model, device, addresses={1: address})
    append = kvit.Append(blocks.view)
    append(to_device(k, device), to_device(v, device), blocks.view, blocks.table, query_indptr=blocks.query_indptr)
    with pytest.raises(kvit.PageTableError, match="page 1 of sequence 0 has id 1, whose block is null or no multiple"):
        append.check()
    attention = kvit.Attention(blocks.view, 4)
    out = attention(to_device(rng.standard_normal((3, 4, DIM)).astype(BFLOAT16), device), blocks.view, blocks.table)
    with pytest.raises(kvit.PageTableError, match="whose block is null"):
        attention.check()
    result = out.numpy().astype(np.float32)
    assert np.isnan(result[0]).all() and not result[1].any() and np.isfinite(result[2]).all()


def test_a_page_id_beyond_the_pointers_is_reported(rng, device):
    blocks, (k, v) = Blocks(Model("int8"), device), tokens(rng)
    ids = to_device(np.array([0, 1, 2, 3, NUM_BLOCKS], np.int32), device)
    indptr = to_device(np.array([0, 3, 3, 5], np.int32), device)
    table = kvit.PageTable(indptr=indptr, indices=ids, lengths=blocks.lengths)
    append = kvit.Append(blocks.view)
    append(to_device(k, device), to_device(v, device), blocks.view, table, query_indptr=blocks.query_indptr)
    with pytest.raises(
        kvit.PageTableError, match=f"page 1 of sequence 2 has id {NUM_BLOCKS}, which the cache does not"
    ):
        append.check()


def test_on_the_host_a_pointer_out_of_the_memory_is_an_error(rng):
    model, (k, v) = Model("int8"), tokens(rng)
    elsewhere = to_device(np.zeros(1 << 16, np.uint8), "host")
    blocks = Blocks(model, "host", addresses={4: elsewhere.pointer})
    with pytest.raises(kvit.HostBackendError, match="outside the memory of this launch"):
        kvit.Append(blocks.view)(k, v, blocks.view, blocks.table, query_indptr=blocks.query_indptr)


@pytest.mark.parametrize("kv", KV)
def test_pages_are_converted_into_blocks_and_copied_between_them(rng, device, kv):
    source = full_stored(rng, (kv, kv), BFLOAT16, device, pages=NUM_BLOCKS, page_size=PAGE, layout="NHD")
    model = Model(kv)
    blocks = Blocks(model, device)
    convert = kvit.ConvertPages(source.view, blocks.view)
    convert(source.view, blocks.view)
    copy = kvit.CopyPages(blocks.view)
    copy(blocks.view, *(to_device(np.array(pages, np.int32), device) for pages in ([0, 3], [2, 1])))
    convert.check()
    copy.check()
    back = full_stored(rng, (kv, kv), BFLOAT16, device, pages=NUM_BLOCKS, page_size=PAGE, layout="HND")
    kvit.ConvertPages(blocks.view, back.view)(blocks.view, back.view)
    pages = np.arange(NUM_BLOCKS)
    reference.convert_pages(source.cache, back.cache, [0, 3, 0, 3, 4], pages, BFLOAT16)
    back.assert_same()
    other_layers = [block[: LAYER * model.layer_bytes] for block in block_bytes(model, blocks)]
    assert all((part == 0xFF).all() for part in other_layers)


def block_bytes(model, blocks):
    memory = [piece.numpy() for piece in blocks.memory]
    return [memory[piece][start : start + LAYERS * model.layer_bytes] for piece, start in model.places]


def test_sixteen_bit_blocks_are_requantised_into_int8_blocks(rng, device):
    wide, narrow, (k, v) = Model("bfloat16"), Model("int8"), tokens(rng)
    source, target = Blocks(wide, device), Blocks(narrow, device)
    kvit.Append(source.view)(
        to_device(k, device), to_device(v, device), source.view, source.table, query_indptr=source.query_indptr
    )
    convert = kvit.ConvertPages(source.view, target.view)
    convert(source.view, target.view)
    convert.check()
    out = [to_device(poisoned(k.shape, BFLOAT16), device) for _ in range(2)]
    kvit.Gather(target.view)(target.view, target.table, out=out, query_indptr=target.query_indptr)
    for got, want in zip(out, reference.gather(*plain_cache("int8", k, v), BFLOAT16)[:2], strict=True):
        np.testing.assert_array_equal(got.numpy(), want)
