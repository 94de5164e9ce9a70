"""Attention(reads_ahead=True): the bits of a launch that waits, behind one that has just written the new tokens."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, to_device
from support.quantised import Quantised

KV_HEADS, QUERY_HEADS, HEAD_DIM = 2, 8, 128


# Old tokens that end with a tile, inside one and a token before the next, and none at all. New tokens: one of each
# sequence, and runs that fill its last tile and begin another.
@pytest.mark.parametrize("pair", [("", ""), ("int8", "int8"), ("int4", "int4")], ids=str)
@pytest.mark.parametrize("each", [1, 9])
@pytest.mark.parametrize("lengths", [[256, 700, 255, 0, 1900], [40]], ids=len)
def test_the_same_bits_as_without_behind_the_append_that_wrote_the_new_tokens(rng, device, pair, each, lengths):
    # What is not yet written is NaN, so that reading a new token too early shows.
    steps = 12
    if device == "host":  # which runs launches one after the other anyway
        steps, lengths = 1, [min(length, 300) for length in lengths]
    final = [length + steps * each for length in lengths]
    case = Quantised(pair, final, page_size=64, head_dim=HEAD_DIM, device=device, rng=rng)
    view, table = case.view, case.page_table
    append, waits = kvit.Append(view), kvit.Attention(view, QUERY_HEADS, tokens_per_sequence=each)
    ahead = kvit.Attention(view, QUERY_HEADS, tokens_per_sequence=each, reads_ahead=True)
    assert ahead.kernel is waits.kernel and ahead.reads_ahead and not waits.reads_ahead
    stream = kvit.Stream(device)
    held = to_device(np.array(lengths, np.int32), device)
    table = kvit.PageTable(table.pages, lengths=held)

    def rows(count, heads):
        return rng.standard_normal((count, heads, HEAD_DIM)).astype(BFLOAT16)

    if sum(lengths):
        old = to_device(np.cumsum([0, *lengths]).astype(np.int32), device)
        k, v = (to_device(rows(sum(lengths), KV_HEADS), device) for _ in range(2))
        append(k, v, view, table, query_indptr=old, stream=stream)
        stream.synchronize()
    total = len(lengths) * each
    k, v, q = (to_device(rows(total, heads), device) for heads in (KV_HEADS, KV_HEADS, QUERY_HEADS))
    outs = [to_device(np.zeros((total, QUERY_HEADS, HEAD_DIM), BFLOAT16), device) for _ in range(2)]
    with kvit.Graph.capture(stream) as graph:
        append(k, v, view, table, stream=stream)
        ahead(q, view, table, out=outs[0], stream=stream)
        ahead(q, view, table, out=outs[0], stream=stream)  # behind another that shares its workspace
    for step in range(1, steps + 1):
        held.copy_from(np.array([length + step * each for length in lengths], np.int32))
        for buffer, heads in ((k, KV_HEADS), (v, KV_HEADS), (q, QUERY_HEADS)):
            buffer.copy_from(rows(total, heads))
        outs[0].fill_bytes(0xFF, stream)
        graph.launch()
        waits(q, view, table, out=outs[1], stream=stream)
        stream.synchronize()
        for op in (append, ahead, waits):
            op.check(stream)
        got, wanted = (out.numpy() for out in outs)
        assert not np.isnan(wanted.astype(np.float32)).any()
        assert np.array_equal(got.view(np.uint16), wanted.view(np.uint16))
