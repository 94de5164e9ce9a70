"""kvit.MixedBatch: one graph stands for all steps, while sequences grow and their tokens become codes."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import rotation_of
from support.caches import BFLOAT16, new_tokens, to_device

ROPE = kvit.Rope(64)
SPECS = [kvit.LayerSpec(count=2), kvit.LayerSpec(kv_heads=1)]
HEADS = [4, 4, 3]


class Decoding:
    """A batch of sequences with prompts of their own, and inputs and outputs of its steps at fixed addresses."""

    def __init__(self, rng, device, lengths, new_tokens=1):
        self.rng, self.stream, self.count = rng, kvit.Stream(device), len(lengths) * new_tokens
        self.cache = kvit.MixedCache(
            60, 4, 2, 64, window=6, exact_pages=60, k="int8", v="int8", layers=SPECS, rope=ROPE, device=device
        )
        self.seqs, self.keys = [self.cache.sequence() for _ in lengths], [[] for _ in SPECS + SPECS[:1]]
        self.each = new_tokens
        for seq, length in zip(self.seqs, lengths, strict=True):
            rows = [new_tokens_of(rng, length, layer) for layer in self.cache.exact.layers]
            k, v = ([to_device(pair[side], device) for pair in rows] for side in range(2))
            self.cache.append([seq], k, v, stream=self.stream)
            self.stream.synchronize()
            for of_layer, pair in zip(self.keys, rows, strict=True):
                of_layer.append(pair[0])
        self.batch = kvit.MixedBatch(
            self.cache, self.seqs, HEADS, new_tokens=new_tokens, max_tokens=80, stream=self.stream
        )
        self.k, self.v, self.q, self.out = ([] for _ in range(4))
        for layer, heads in zip(self.cache.exact.layers, HEADS, strict=True):
            for made, of in ((self.k, layer.kv_heads), (self.v, layer.kv_heads), (self.q, heads), (self.out, heads)):
                made.append(kvit.Buffer.empty((self.count, of, 64), "bfloat16", device, self.stream))

    def set_inputs(self):
        for i, layer in enumerate(self.cache.exact.layers):
            k, v = new_tokens_of(self.rng, self.count, layer)
            for buffer, x in ((self.k[i], k), (self.v[i], v)):
                buffer.copy_from(x, self.stream)
            self.q[i].copy_from(self.rng.standard_normal((self.count, HEADS[i], 64)).astype(BFLOAT16), self.stream)
            for s in range(len(self.seqs)):
                new = k[s * self.each : (s + 1) * self.each]
                self.keys[i][s] = np.concatenate([self.keys[i][s], new])

    def launch(self):
        for i in range(len(HEADS)):
            self.batch.append(self.k[i], self.v[i], layer=i)
            self.batch.attention(self.q[i], layer=i, out=self.out[i])

    def check(self, outs):
        """Outputs, as they were inside of the step, are those of the tokens that the cache holds."""
        self.stream.synchronize()
        self.cache.check(self.stream)
        for i, found in enumerate(outs):
            k, v, indptr = (x.numpy() for x in self.cache.gather(self.seqs, layer=i, stream=self.stream))
            q = self.q[i].numpy()
            for s, keys in enumerate(self.keys[i]):
                part, rows = slice(indptr[s], indptr[s + 1]), slice(s * self.each, (s + 1) * self.each)
                turned = reference.rotate(keys, np.arange(len(keys)), rotation_of(ROPE)).astype(np.float32)
                assert len(turned) == part.stop - part.start
                assert np.abs(k[part].astype(np.float32) - turned).max() < 0.05  # a step of int8
                # Tokens that became codes when the step ended had 16 bits when it attended: 0.02 of such steps.
                want = reference.attention(q[rows], k[part], v[part]).out
                assert np.abs(found[rows].astype(np.float32) - want).max() < 0.06


def new_tokens_of(rng, count, layer):
    return new_tokens(rng, count, layer.kv_heads)


@pytest.mark.parametrize("each", [1, 3])
def test_a_graph_of_one_step_stands_for_all_that_follow(rng, device, each):
    # Two begin without codes, one of them empty; pages leave the window at different steps; a fork shares some.
    case = Decoding(rng, device, [6, 33, 0, 18], each)
    case.set_inputs()
    with case.batch.step():
        with kvit.Graph.capture(case.stream) as graph:
            case.launch()
        graph.launch()
        outs = [x.numpy() for x in case.out]
    case.check(outs)
    coded, twin = [len(seq.coded) for seq in case.seqs], case.seqs[1].fork()
    for _ in range(13):
        case.set_inputs()
        with case.batch.step():
            graph.launch()
            case.stream.synchronize()
            outs = [x.numpy() for x in case.out]
        case.check(outs)
    assert [len(seq) for seq in case.seqs] == [n + 14 * each for n in (6, 33, 0, 18)]
    assert all(now > before for now, before in zip((len(seq.coded) for seq in case.seqs), coded, strict=True))
    assert len(twin) == 33 + each


def test_without_a_graph_it_is_what_the_cache_does(rng, device):
    case = Decoding(rng, device, [30, 9])
    case.set_inputs()
    with case.batch.step() as step:
        case.launch()
        case.stream.synchronize()
        for i in range(3):
            alone = case.cache.attention(case.q[i], step, layer=i).numpy()
            np.testing.assert_array_equal(alone.view(np.uint16), case.out[i].numpy().view(np.uint16))


def test_an_exception_in_a_step_leaves_the_sequences(rng, device):
    case = Decoding(rng, device, [30, 9])
    with pytest.raises(ZeroDivisionError), case.batch.step():
        raise ZeroDivisionError
    assert [len(seq) for seq in case.seqs] == [30, 9]
    case.set_inputs()
    with case.batch.step():
        case.launch()
        outs = [x.numpy() for x in case.out]
    case.check(outs)


def test_refusals(rng, device):
    case = Decoding(rng, device, [3])
    with pytest.raises(kvit.KvitError, match="no step that is open"):
        case.batch.attention(case.q[0], out=case.out[0])
    for heads, words in ((3, "3 query heads"), ([4, 4], "query_heads has 2 numbers"), (0, r"query_heads\[0\]")):
        with pytest.raises(kvit.ShapeError, match=words):
            kvit.MixedBatch(case.cache, case.seqs, heads)
    with pytest.raises(TypeError, match="a kvit.MixedCache"):
        kvit.MixedBatch(case.cache.exact, case.seqs, 4)
    with case.batch.step(), pytest.raises(kvit.ShapeError, match="q has shape"):
        case.batch.attention(case.q[2], layer=0)
