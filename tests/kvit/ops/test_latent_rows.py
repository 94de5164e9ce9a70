"""Attention over 8-bit latent rows as engines store them: 656 bytes a token (DeepSeek V3.2) and 584 (V4).

Chosen: pages of 1 to 64 tokens, which bands of a warp cross, share or fill; 1 to 128 heads and several new tokens,
whose row tiles end anywhere; blocks of channels that differ in magnitude by powers of two, so that a scale of another
block would show. Every byte that belongs to no token is 0xff, which is NaN as a code, as a scale and as a rotary
channel; so is the byte of a token that nobody reads.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, make_table, poisoned, to_device
from support.tolerances import assert_within

BYTES = pytest.mark.parametrize("token_bytes", [656, 584])


class Rows:
    """8-bit rows in pages, in the reference's words and on a device."""

    def __init__(self, rng, lengths, token_bytes, *, page_size=16, device="host", table="dense"):
        self.kind, self.device, self.page_size = reference.LATENT_ROWS[token_bytes], device, page_size
        slots = [-(-length // page_size) for length in lengths]
        order = rng.permutation(sum(slots) + 2).astype(np.int32)
        pages = np.split(order[: sum(slots)], np.cumsum(slots)[:-1])
        self.table, self.page_table = reference.Table(pages, lengths), make_table(pages, lengths, table, device)
        page_bytes = -(-page_size * token_bytes // 576) * 576  # as vLLM pads them
        self.bytes = np.full((len(order), page_bytes), 0xFF, np.uint8)
        scale = np.exp2(rng.integers(-4, 3, (sum(lengths), self.kind.channels // self.kind.block + 1, 1)))
        x = rng.standard_normal((sum(lengths), scale.shape[1], self.kind.block)) * scale
        places = [self.table.places(self.cache, i) for i in range(len(lengths))]
        places = tuple(np.concatenate([place[i] for place in places]) for i in (0, 1))
        x = x.reshape(sum(lengths), -1)[:, : self.kind.channels].astype(BFLOAT16)
        reference.write_latent(self.bytes, page_size, self.kind, places, x)
        if self.kind.behind_page:
            scales = reference.latent.latent_parts(self.bytes, page_size, self.kind)[2]
            scales[..., 7] = 0xFF
        self.buffer = to_device(self.bytes, device)
        self.view = kvit.LatentRows(
            kvit.Tensor.from_pointer(
                self.buffer.pointer,
                (len(order), page_size, token_bytes),
                "uint8",
                device,
                strides=(page_bytes, token_bytes, 1),
                owner=self.buffer,
            )  # fmt: skip
        )

    @property
    def cache(self):
        rows = reference.read_latent(self.bytes, self.page_size, self.kind)
        return reference.Cache(rows, rows[..., :512])

    def queries(self, rng, tokens, heads):
        return (rng.standard_normal((tokens, heads, self.kind.channels)) / 8).astype(BFLOAT16)

    def attend(self, q, counts, **options):
        self.buffer.copy_from(self.bytes)
        op = kvit.Attention(self.view, q.shape[1], tokens_per_sequence=max(counts), **options)
        indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), self.device)
        out = to_device(poisoned((*q.shape[:2], 512), BFLOAT16), self.device)
        lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), self.device)
        op(to_device(q, self.device), self.view, self.page_table, query_indptr=indptr, out=out, lse=lse)
        op.check()
        return op, out.numpy(), lse.numpy()

    def assert_right(self, q, counts, **options):
        op, out, lse = self.attend(q, counts, **options)
        cache = self.cache
        options = {name: x.numpy() if isinstance(x, kvit.Buffer) else x for name, x in options.items()}
        options.pop("split_tokens", None)
        state = reference.paged_attention(q, cache, self.table, counts, **options)
        positive = reference.Cache(cache.k, np.abs(cache.v))
        magnitude = reference.paged_attention(q, positive, self.table, counts, **options).out
        assert_within(out, state.out, tolerances.attention_bound(magnitude, q.dtype))
        assert_within(lse, state.lse, tolerances.LSE)
        return op


@BYTES
@pytest.mark.parametrize("page_size, heads", [(1, 16), (5, 3), (16, 128), (32, 1), (64, 16), (64, 70)])
def test_one_new_token(rng, device, token_bytes, page_size, heads):
    case = Rows(rng, [70, 3, 0, 40], token_bytes, page_size=page_size, device=device)
    op = case.assert_right(case.queries(rng, 3, heads), [1, 1, 0, 1])
    assert op.kernel.family == "latent_rows"


@BYTES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads, counts", [(3, [30, 1, 0, 25]), (16, [5, 2, 5, 0])], ids=str)
def test_several_new_tokens(rng, device, token_bytes, heads, counts, causal):
    case = Rows(rng, [100, 64, 128, 70], token_bytes, device=device, table="ragged")
    case.assert_right(case.queries(rng, sum(counts), heads), counts, causal=causal)


@BYTES
def test_masks_and_scores_are_those_of_general_kernels(rng, device, token_bytes):
    """A window that leaves out whole tiles, and sinks: what DeepSeek V4 asks for."""
    case = Rows(rng, [150, 9], token_bytes, device=device)
    sinks = to_device(rng.standard_normal(4).astype(np.float32), device)
    case.assert_right(case.queries(rng, 3, 4), [2, 1], window=50, sinks=sinks, scale=0.1)


@BYTES
def test_splits_give_the_same_bits_in_any_batch(rng, device, token_bytes):
    case = Rows(rng, [200, 70], token_bytes, device=device)
    q = case.queries(rng, 2, 16)
    _, together, _ = case.attend(q, [1, 1], split_tokens=64)
    case.assert_right(q, [1, 1], split_tokens=64)
    case.table = reference.Table(case.table.pages[1:], case.table.lengths[1:])
    case.page_table = make_table(case.table.pages, case.table.lengths, "dense", device)
    _, alone, _ = case.attend(q[1:], [1], split_tokens=64)
    np.testing.assert_array_equal(alone.view(np.uint16), together[1:].view(np.uint16))


@BYTES
def test_every_code_and_every_scale_is_the_number_that_the_reference_has(rng, device, token_bytes):
    """One visible token gives its row back, bit for bit: all 256 codes, subnormal ones and NaN among them, under scales
    of 584 bytes from 2^-127 on, and others of 656 that round."""
    kind = reference.LATENT_ROWS[token_bytes]
    blocks = kind.codes // kind.block
    for start in range(0, 256, 4 * blocks):
        case = Rows(rng, [1], token_bytes, page_size=1, device=device)
        codes, rotary, scales = reference.latent.latent_parts(case.bytes, 1, kind)
        page = case.table.pages[0][0]
        codes[page, 0] = np.arange(start, start + kind.codes) % 256
        rotary[page, 0].view(BFLOAT16)[...] = 0
        if token_bytes == 656:
            scales[page, 0].view(np.float32)[...] = rng.uniform(0.5, 2, 4) * np.exp2(rng.integers(-60, 60, 4))
        else:
            scales[page, 0, :7] = (np.arange(7) * 41 + start) % 246  # 2^119: 448 times more is infinite
        q = np.zeros((1, 8, kind.channels), BFLOAT16)
        _, out, _ = case.attend(q, [1])
        # A zero of a query times NaN is NaN in all scores: the numbers alone are compared where there is one.
        row = case.cache.v[page, 0, 0].astype(np.float32)
        if np.isnan(case.cache.k[page, 0, 0].astype(np.float32)).any():
            assert np.isnan(out.astype(np.float32)).all()
            nans = (codes[page, 0] & 0x7F) == 0x7F
            codes[page, 0][nans] = 0
            _, out, _ = case.attend(q, [1])
            row = case.cache.v[page, 0, 0].astype(np.float32)
        expected = np.broadcast_to(row, out[0].shape)
        np.testing.assert_array_equal(out[0].astype(np.float32), expected)


@BYTES
def test_a_page_that_does_not_exist_is_told(rng, device, token_bytes):
    case = Rows(rng, [40], token_bytes, device=device)
    case.page_table = make_table([np.array([0, 99, 1])], [40], "dense", device)
    with pytest.raises(kvit.PageTableError, match="99"):
        case.attend(case.queries(rng, 1, 8), [1])


def test_views_of_the_other_kind_and_queries_in_float16_are_refused(rng, device):
    v3, v4 = (Rows(rng, [20], token_bytes, device=device) for token_bytes in (656, 584))
    op = kvit.Attention(v3.view, 16)
    with pytest.raises(kvit.ShapeError, match="make another Attention for this view"):
        op(to_device(v3.queries(rng, 1, 16), device), v4.view, v4.page_table)
    with pytest.raises(kvit.DtypeError, match="queries of float16"):
        kvit.Attention(v3.view, 16, dtype="float16")


def test_explain_counts_the_bytes_of_a_token(rng, device):
    for token_bytes in (656, 584):
        words = kvit.Attention(Rows(rng, [20], token_bytes, device=device).view, 16).explain(lengths=[100])
        assert f"{100 * token_bytes} bytes of K and V" in words
