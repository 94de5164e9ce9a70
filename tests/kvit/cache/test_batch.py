"""kvit.Batch: steps of a batch that stays together, and one graph that stands for all of them."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, new_tokens, to_device

SPECS = [kvit.LayerSpec(count=2), kvit.LayerSpec(kv_heads=1, k="int8", v="int8"), kvit.LayerSpec(window=5)]


class Decoding:
    """A batch of sequences with prompts of their own, and inputs and outputs of its steps at fixed addresses."""

    def __init__(self, rng, device, lengths, pages=64, max_tokens=40):
        self.rng, self.stream = rng, kvit.Stream(device)
        self.cache = kvit.PagedCache(pages, 4, 2, 64, layers=SPECS, device=device)
        self.seqs = [self.cache.sequence() for _ in lengths]
        self.rows = [[] for _ in lengths]  # of each sequence: K and V of all layers, token by token
        self.tokens = len(lengths)
        self.append_prompts(lengths)
        self.batch = kvit.Batch(self.cache, self.seqs, max_tokens=max_tokens, stream=self.stream)
        self.k, self.v, self.q, self.out = ([] for _ in range(4))
        for layer in self.cache.layers:
            shape = (self.tokens, layer.kv_heads, 64)
            for made, of in (
                (self.k, shape),
                (self.v, shape),
                (self.q, (self.tokens, 4, 64)),
                (self.out, (self.tokens, 4, 64)),
            ):
                made.append(kvit.Buffer.empty(of, "bfloat16", device, self.stream))

    def draw(self, counts):
        """New K and V of every layer, noted as those of sequences with so many new tokens each."""
        new = [new_tokens(self.rng, sum(counts), layer.kv_heads) for layer in self.cache.layers]
        for rows, part in zip(self.rows, reference.token_ranges(counts), strict=True):
            rows += [[x[:, t] for x in new] for t in range(part.start, part.stop)]
        return new

    def append_prompts(self, lengths):
        new = self.draw(lengths)
        k, v = ([to_device(x[side], self.cache.device) for x in new] for side in range(2))
        self.cache.append(self.seqs, k, v, lengths, stream=self.stream)
        self.stream.synchronize()  # until then nobody may free what is appended

    def set_inputs(self):
        """Inputs of a step of one token each."""
        new = self.draw([1] * self.tokens)
        for i, x in enumerate(new):
            self.k[i].copy_from(x[0].view(np.uint16).view(BFLOAT16), self.stream)
            self.v[i].copy_from(x[1], self.stream)
            self.q[i].copy_from(self.rng.standard_normal((self.tokens, 4, 64)).astype(BFLOAT16), self.stream)

    def launch(self):
        for i, layer in enumerate(self.cache.layers):
            layer.append(self.batch, self.k[i], self.v[i])
            kvit.attention(self.q[i], layer, self.batch, out=self.out[i])

    def check(self):
        """Outputs are those of the tokens so far, and the pages hold them."""
        self.stream.synchronize()
        self.cache.check(self.stream)
        for i, layer in enumerate(self.cache.layers):
            codecs = [reference.codec_of(codec.name) for codec in layer.view.codecs]
            k, v, indptr = (x.numpy() for x in layer.gather(self.seqs, stream=self.stream))
            out, q = self.out[i].numpy(), self.q[i].numpy()
            for s, rows in enumerate(self.rows):
                part = slice(indptr[s], indptr[s + 1])
                for side, (found, codec) in enumerate(zip((k, v), codecs, strict=True)):
                    new = np.stack([token[i][side] for token in rows])
                    np.testing.assert_array_equal(found[part], codec.decode(*codec.encode(new), BFLOAT16))
                expected = reference.attention(q[s : s + 1], k[part], v[part], window=layer.window).out
                np.testing.assert_allclose(out[s : s + 1].astype(np.float32), expected, atol=0.03, rtol=0.03)


def test_a_graph_of_one_step_stands_for_all_that_follow(rng, device):
    # Sequences cross the ends of pages at different steps, and one begins empty.
    case = Decoding(rng, device, [6, 3, 0, 9])
    case.set_inputs()
    with case.batch.step():
        with kvit.Graph.capture(case.stream) as graph:
            case.launch()
        graph.launch()
    case.check()
    for _ in range(13):
        case.set_inputs()
        with case.batch.step():
            graph.launch()
        case.check()
    assert [len(seq) for seq in case.seqs] == [20, 17, 14, 23]


def test_the_graph_stays_right_when_others_share_pages_and_pages_move(rng, device):
    case = Decoding(rng, device, [6, 3])
    case.set_inputs()
    with case.batch.step():
        with kvit.Graph.capture(case.stream) as graph:
            case.launch()
        graph.launch()
    twins = [seq.fork() for seq in case.seqs]  # the next step copies what is part full
    gone = case.cache.sequence()
    case.set_inputs()
    with case.batch.step():
        graph.launch()
    case.check()
    gone.free()
    for twin in twins:
        twin.free()
    assert case.cache.defragment(order="sequences", stream=case.stream) > 0
    case.seqs[0].truncate(4)  # as speculative decoding does
    del case.rows[0][4:]
    case.set_inputs()
    with case.batch.step():
        graph.launch()
    case.check()


def test_the_graph_stays_right_for_other_sequences(rng, device):
    # As beams do: one sequence twice over, as forks, and another one not at all; then prompts that are new.
    case = Decoding(rng, device, [6, 3, 9])
    case.set_inputs()
    with case.batch.step():
        with kvit.Graph.capture(case.stream) as graph:
            case.launch()
        graph.launch()
    case.seqs, case.rows = [case.seqs[i].fork() for i in (2, 0, 2)], [list(case.rows[i]) for i in (2, 0, 2)]
    case.batch.use(case.seqs)
    for _ in range(3):
        case.set_inputs()
        with case.batch.step():
            graph.launch()
        case.check()
    case.seqs, case.rows = [case.cache.sequence() for _ in range(3)], [[], [], []]
    case.append_prompts([2, 13, 5])
    case.batch.use(case.seqs)
    case.set_inputs()
    with case.batch.step():
        graph.launch()
    case.check()


def test_other_sequences_are_as_many_and_wait_for_the_end_of_a_step(rng):
    case = Decoding(rng, "host", [6, 3])
    before = case.batch.seqs
    with case.batch.step(0), pytest.raises(kvit.KvitError, match="has a step that is open"):
        case.batch.use(case.seqs)
    with pytest.raises(kvit.ShapeError, match="1 sequences for a batch of 2"):
        case.batch.use(case.seqs[:1])
    with pytest.raises(kvit.ShapeError, match=r"seqs\[1\] is seqs\[0\] again"):
        case.batch.use([case.seqs[0]] * 2)
    assert case.batch.seqs is before


def test_steps_of_a_batch_take_any_numbers_of_tokens_and_attend_without_a_step_too(rng, device):
    case = Decoding(rng, device, [6, 3])
    for counts in ([1, 4], [3, 3], [0, 2]):
        new = [[to_device(x, device) for x in of_layer] for of_layer in case.draw(counts)]
        with case.batch.step(counts) as taken:
            for i, layer in enumerate(case.cache.layers):
                layer.append(case.batch, *new[i])
                layer.append(taken, *new[i])  # the same step by its other name
        case.stream.synchronize()  # until then nobody may free what is appended
    for i, layer in enumerate(case.cache.layers):
        q = to_device(rng.standard_normal((2, 4, 64)).astype(BFLOAT16), device)
        found = kvit.attention(q, layer, case.batch, out=case.out[i])
        plain = kvit.attention(q, layer, case.seqs, stream=case.stream)
        case.stream.synchronize()
        np.testing.assert_array_equal(found.numpy(), plain.numpy())
        case.q[i] = q
    case.check()


def test_a_step_sends_what_changed_and_nothing_else(rng, monkeypatch):
    case = Decoding(rng, "host", [6, 3])
    table = case.batch.table
    lengths, indptr, pages = (x.numpy().copy() for x in (table.lengths, table.indptr, table.pages))
    case.set_inputs()
    with case.batch.step():
        case.launch()
        assert case.batch.table is table and table.lengths.numpy().tolist() == [7, 4]
        np.testing.assert_array_equal(table.indptr.numpy(), indptr)
        np.testing.assert_array_equal(table.pages.numpy(), pages)
    # A second sequence comes to its next page: its entry is sent, in the room that it had.
    case.set_inputs()
    with case.batch.step():
        case.launch()
        changed = np.flatnonzero(table.pages.numpy() != pages)
        assert changed.tolist() == [indptr[1] + 1] and table.lengths.numpy().tolist() == [8, 5]
    case.check()
    assert lengths.tolist() == [6, 3]


def test_a_batch_that_is_refused_says_why(rng):
    case = Decoding(rng, "host", [6, 3], pages=20, max_tokens=8)
    cache, batch = case.cache, case.batch
    free = cache.sequence()
    with pytest.raises(kvit.CacheFull, match="needs 20 more pages and has 17 free of 20"):
        batch.step(40)
    assert batch.capacity == 12
    with pytest.raises(kvit.CacheFull, match="room for 12 pages of all sequences; make a Batch of more max_tokens"):
        batch.step([22, 30])
    assert [len(seq) for seq in case.seqs] == [6, 3] and cache.num_free_pages == 17
    with pytest.raises(kvit.KvitError, match="no step that is open; begin one: `with batch.step"):
        cache.layer(0).append(batch, case.k[0], case.v[0])
    with batch.step(0), pytest.raises(kvit.KvitError, match="in a step that is still open"):
        batch.step()
    with kvit.Graph.capture(case.stream), pytest.raises(kvit.DriverError, match="differs from the last call"):
        batch.step()
    case.set_inputs()
    with batch.step():
        case.launch()
    case.check()
    with pytest.raises(
        kvit.ShapeError, match="the sequences have 3 pages, and max_tokens leaves room for 2; give more"
    ):
        kvit.Batch(cache, case.seqs, max_tokens=4)
    with pytest.raises(kvit.ShapeError, match=r"seqs\[1\] is seqs\[0\] again"):
        kvit.Batch(cache, [free, free])
    with pytest.raises(kvit.ShapeError, match=r"seqs\[0\] belongs to another cache"):
        kvit.Batch(cache, [kvit.PagedCache(2, 4, 1, 64, device="host").sequence()])
    with pytest.raises(TypeError, match="cache is a CacheView; give a kvit.PagedCache"):
        kvit.Batch(cache.layer(0).view, case.seqs)
    assert len(batch) == 2 and repr(batch).startswith("Batch(2 sequences of PagedCache(4 layers")
