"""The same bits wherever memory lies: results depend on what is stored, and on no address."""

import numpy as np
import pytest

import kvit
from support.caches import FLOAT16, new_cache, new_tokens, to_device

LENGTHS, HEADS, DIM, QUERY_HEADS = [300, 7, 0, 129], 2, 64, 8

# Bytes behind a multiple of 4096: the least step that rows may have, one that shares no line with another, and two at
# the end of a page of memory.
OFFSETS = [0, 16, 48, 4096 - 16, 8192 - 112]


def raw(source):
    return kvit.Tensor.from_pointer(source.pointer, (source.nbytes,), "uint8", source.device, owner=source)


def moved(source, offset):
    """A copy of a tensor that begins at such an address."""
    source = kvit.Tensor.wrap(source)
    block = kvit.Buffer.empty(source.nbytes + 4 * 4096, "uint8", source.device)
    begin = -block.pointer % 4096 + offset
    block[begin : begin + source.nbytes].copy_from(raw(source))
    return kvit.Tensor.from_pointer(block.pointer + begin, source.shape, source.dtype, source.device, owner=block)


class Memory:
    """All that calls read and write, each in a place of its own."""

    def __init__(self, cache, table, q, new, shift):
        # How the places lie to each other changes with the shift too.
        offsets = iter([OFFSETS[(i * i + shift) % len(OFFSETS)] for i in range(40)])

        def place(source):
            return moved(source, next(offsets))

        device, view = cache.device, cache.view
        params = {name: getattr(view, name) for name in ("k_params", "v_params") if "int" in str(view.codecs[0])}
        self.k, self.v = place(view.k), place(view.v)
        self.params = {name: place(found) for name, found in params.items()}
        self.view = kvit.CacheView(
            self.k, self.v, layout="HND", kv=[codec.name for codec in view.codecs], dtype="float16", **self.params
        )
        self.table = kvit.PageTable(
            indices=place(table.pages), indptr=place(table.indptr), lengths=place(table.lengths)
        )
        self.q, self.new = place(q), [place(side) for side in new]
        self.out = place(to_device(np.zeros((len(LENGTHS), QUERY_HEADS, DIM), FLOAT16), device))
        self.lse = place(to_device(np.zeros((len(LENGTHS), QUERY_HEADS), np.float32), device))
        total = to_device(np.zeros((sum(LENGTHS), HEADS, DIM), FLOAT16), device)
        self.rows = place(total), place(total)
        self.indptr = place(to_device(np.cumsum([0, *LENGTHS], dtype=np.int32), device))
        self.new_indptr = place(to_device(np.array([0, 1, 2, 2, 3], np.int32), device))

    def bits(self):
        tensors = self.out, self.lse, self.k, self.v, *self.params.values(), *self.rows
        copies = [kvit.Buffer.empty(tensor.nbytes, "uint8", tensor.device) for tensor in tensors]
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_from(raw(tensor))
        return [copy.numpy().copy() for copy in copies]


@pytest.mark.parametrize("split_tokens", [None, 128])
@pytest.mark.parametrize("kv", ["float16", "int8", "float8_e4m3"])
def test_attention_append_and_gather_give_the_same_bits_at_any_address(rng, device, kv, split_tokens):
    cache = new_cache(device, 40, dtype="float16", k=kv, v=kv)
    sequences = [cache.sequence() for _ in LENGTHS]
    rows = new_tokens(rng, sum(LENGTHS), dtype=FLOAT16)
    cache.append(sequences, *(to_device(side, device) for side in rows), LENGTHS)
    q = to_device(rng.standard_normal((len(LENGTHS), QUERY_HEADS, DIM)).astype(FLOAT16), device)
    new = [to_device(side, device) for side in new_tokens(rng, 3, dtype=FLOAT16)]
    kernel = split_tokens and {"copies": "cp_async"}  # tiles of other kernels have more tokens than a split
    found = []
    for shift in range(len(OFFSETS)):
        memory = Memory(cache, cache.table(sequences), q, new, shift)
        op = kvit.Attention(memory.view, QUERY_HEADS, split_tokens=split_tokens, kernel=kernel)
        op(memory.q, memory.view, memory.table, out=memory.out, lse=memory.lse)
        kvit.Gather(memory.view)(memory.view, memory.table, out=memory.rows, query_indptr=memory.indptr)
        kvit.Append(memory.view)(*memory.new, memory.view, memory.table, query_indptr=memory.new_indptr)
        op.check()
        found.append(memory.bits())
        assert found[-1][0].any() and found[-1][-1].any()
    for other in found[1:]:
        for here, there in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(here, there)
