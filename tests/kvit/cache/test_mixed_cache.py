"""kvit.MixedCache: first and newest tokens keep their bits, those between are what their codec leaves of them."""

import copy

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit.reference import codec_of
from support import tolerances
from support.appends import rotation_of
from support.caches import BFLOAT16, to_device
from support.interrupts import at_every_line
from support.smoothings import referred, smoothing_of

HEADS, DIM, PAGE = 2, 64, 4
ROPE = kvit.Rope(DIM, rotary_dim=32)


def new_cache(device, *, window=8, sinks=3, pages=60, exact_pages=40, k="int8", v="int4", **options):
    return kvit.MixedCache(
        pages, PAGE, HEADS, DIM, window=window, sinks=sinks, exact_pages=exact_pages, k=k, v=v, device=device, **options
    )


def tokens(rng, count):
    return rng.standard_normal((2, count, HEADS, DIM)).astype(BFLOAT16)


def sent(rows, device):
    return tuple(to_device(x, device) for x in rows)


def coded(rows, name):
    codec = codec_of(name)
    return codec.decode(*codec.encode(rows), rows.dtype)


class Model:
    """What sequences should hold: tokens as they came, and which of them are codes."""

    def __init__(self, cache, names, rope=None, smoothing=None):
        self.cache, self.names, self.rope = cache, names, rope
        self.smoothing = None if smoothing is None else referred(smoothing)
        self.rows = []  # (k, v) of each sequence
        self.coded = []  # how many are codes, behind the sinks

    def start(self):
        self.rows.append(tuple(np.zeros((2, 0, HEADS, DIM), BFLOAT16)))
        self.coded.append(0)

    def append(self, i, k, v):
        self.rows[i] = tuple(np.concatenate(pair) for pair in zip(self.rows[i], (k, v), strict=True))
        exact = len(self.rows[i][0]) - self.coded[i]
        self.coded[i] += max(0, exact - self.cache.sinks - self.cache.window) // PAGE * PAGE

    def truncate(self, i, length):
        self.rows[i] = tuple(rows[:length] for rows in self.rows[i])
        self.coded[i] = max(0, min(self.coded[i], length - self.cache.sinks))

    def held(self, i):
        """Rows as gather gives them, bit for bit."""
        k, v = self.rows[i]
        begin, end = self.cache.sinks, self.cache.sinks + self.coded[i]
        last = None if self.smoothing is None else self.smoothing.of_keys
        if self.rope is None:
            k = reference.biased(k, None, None, last)
        else:
            k = reference.rotate(k, np.arange(len(k)), rotation_of(self.rope), last=last)
        k, v = k.copy(), v.copy()
        if last is not None:  # out of 16 bits, and smoothed anew on the way into codes
            k = self.smoothing.undone(k)
            k[begin:end] = reference.biased(k[begin:end], None, None, last)
        k[begin:end], v[begin:end] = (coded(x[begin:end], name) for x, name in zip((k, v), self.names, strict=True))
        if last is not None:
            k[begin:end] = self.smoothing.undone(k[begin:end])
        return k, v

    def check(self, seqs):
        if not seqs:
            return
        k, v, indptr = self.cache.gather(seqs)
        self.cache.check()
        wanted = [self.held(i) for i in range(len(seqs))]
        for found, want in zip((k, v), zip(*wanted, strict=True), strict=True):
            np.testing.assert_array_equal(found.numpy().view(np.uint16), np.concatenate(want).view(np.uint16))
        assert indptr.numpy().tolist() == [0, *np.cumsum([len(k) for k, _ in wanted])]
        for i, seq in enumerate(seqs):
            assert len(seq) == len(self.rows[i][0]) and len(seq.coded) == self.coded[i]
            assert len(seq.exact) == len(seq) - self.coded[i]


@pytest.mark.parametrize("with_smoothing", [False, True])
@pytest.mark.parametrize("rope", [None, ROPE], ids=["as it comes", "rope"])
@pytest.mark.parametrize("names", [("int8", "int4"), ("int4_hadamard", "int4_hadamard")], ids=str)
def test_any_order_of_calls_leaves_each_sequence_its_tokens(rng, device, names, rope, with_smoothing):
    # Appends of one token, of less and more than a page and than the window; forks; truncations into codes and sinks.
    smoothing = smoothing_of(rng, HEADS, DIM) if with_smoothing else None
    cache = new_cache(device, k=names[0], v=names[1], rope=rope, smoothing=smoothing)
    model, seqs, done, most = Model(cache, names, rope, smoothing), [], set(), 0
    for _ in range(60):
        choice = rng.choice(["start", "append", "append", "append", "fork", "truncate", "free"])
        i = int(rng.integers(max(1, len(seqs))))
        if choice == "start" and len(seqs) < 4:
            seqs.append(cache.sequence())
            model.start()
        elif not seqs or (choice == "fork" and len(seqs) == 4):
            continue
        elif choice == "append":
            counts = [int(rng.choice([0, 1, 1, 3, 6, 21])) if len(seq) < 40 else 0 for seq in seqs]
            k, v = tokens(rng, sum(counts))
            cache.append(seqs, *sent((k, v), device), counts)
            for j, part in enumerate(reference.token_ranges(counts)):
                model.append(j, k[part], v[part])
        elif choice == "fork":
            seqs.append(seqs[i].fork())
            model.rows.append(model.rows[i])
            model.coded.append(model.coded[i])
        elif choice == "truncate":
            length = int(rng.integers(len(seqs[i]) + 1))
            seqs[i].truncate(length)
            model.truncate(i, length)
        elif choice == "free":
            seqs.pop(i).free()
            del model.rows[i], model.coded[i]
        done.add(str(choice))
        most = max(most, *model.coded, 0)
        model.check(seqs)
    assert len(done) == 5 and most > 8
    for seq in seqs:
        seq.free()
    assert cache.exact.num_free_pages == cache.exact.num_pages
    assert cache.coded.num_free_pages == cache.coded.num_pages


def assert_attention(cache, seqs, q, counts, out, lse):
    """Against the reference over what the cache holds."""
    k, v, indptr = (x.numpy() for x in cache.gather(seqs))
    for i, part in enumerate(reference.token_ranges(counts)):
        rows = slice(indptr[i], indptr[i + 1])
        state = reference.attention(q[part], k[rows], v[rows])
        magnitude = reference.attention(q[part], k[rows], np.abs(v[rows])).out
        # Two parts, each rounded to the dtype of outputs before they are joined.
        bound = 3 * tolerances.attention_bound(magnitude, q.dtype) + 4 * tolerances.SCORE_QUANTISED * magnitude
        tolerances.assert_within(out[part], state.out, bound)
        tolerances.assert_within(lse[part], state.lse, 2 * tolerances.SCORE_QUANTISED)


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [5, 1, 8, 2]], ids=["one", "several"])
def test_attention_reads_both_kinds_of_pages(rng, device, counts):
    # Nothing in codes; a few pages; many; and a sequence of nothing but new tokens.
    cache = new_cache(device, rope=ROPE)
    seqs = [cache.sequence() for _ in counts]
    for seq, length in zip(seqs, [9, 30, 60, 2], strict=True):
        seq.append(*sent(tokens(rng, length), device))
    assert [len(seq.coded) for seq in seqs] == [0, 16, 48, 0]
    q = rng.standard_normal((sum(counts), 3 * HEADS, DIM)).astype(BFLOAT16)
    out, lse = cache.attention(to_device(q, device), seqs, counts, return_lse=True)
    assert_attention(cache, seqs, q, counts, out.numpy(), lse.numpy())
    into = to_device(np.full_like(q, np.nan), device)
    assert cache.attention(to_device(q, device), seqs, counts, out=into) is into
    np.testing.assert_array_equal(into.numpy().view(np.uint16), out.numpy().view(np.uint16))


def test_a_prompt_attends_to_itself_before_it_becomes_codes(rng, device):
    cache = new_cache(device, rope=ROPE, k="int4", v="int4")
    seq, (k, v) = cache.sequence(), tokens(rng, 40)
    q = rng.standard_normal((40, 4, DIM)).astype(BFLOAT16)
    with cache.step([seq], 40) as step:
        step.append(*sent((k, v), device))
        out = cache.attention(to_device(q, device), step).numpy()
    turned = reference.rotate(k, np.arange(40), rotation_of(ROPE))
    state = reference.attention(q, turned, v)
    magnitude = reference.attention(q, turned, np.abs(v)).out
    tolerances.assert_within(out, state.out, tolerances.attention_bound(magnitude, BFLOAT16))
    assert len(seq.coded) == 28 and len(seq) == 40


def test_queries_turn_to_their_true_places_too(rng, device):
    cache = new_cache(device, rope=ROPE)
    seq, (k, v) = cache.sequence(), tokens(rng, 33)
    seq.append(*sent((k[:32], v[:32]), device))
    assert len(seq.coded) == 20
    q = rng.standard_normal((1, 4, DIM)).astype(BFLOAT16)
    turned = to_device(q, device)
    cache.append([seq], *sent((k[32:], v[32:]), device), q=turned)
    want = reference.rotate(q, [32], rotation_of(ROPE))
    np.testing.assert_array_equal(turned.numpy().view(np.uint16), want.view(np.uint16))


def test_every_layer_of_a_model(rng, device):
    layers = [kvit.LayerSpec(count=2), kvit.LayerSpec(kv_heads=1, head_dim=128, k="int8", v="int8")]
    cache = new_cache(device, layers=layers, k="int4", v="int4")
    assert [layer.view.holds for layer in cache.exact.layers] == ["bfloat16"] * 3
    shapes, names = [(2, 64), (2, 64), (1, 128)], ["int4", "int4", "int8"]
    seq, given = cache.sequence(), [[], [], []]
    for count in (25, 1, 1, 1, 1):
        with cache.step([seq], count) as step:
            for layer, shape in enumerate(shapes):
                k, v = rng.standard_normal((2, count, *shape)).astype(BFLOAT16)
                step.append(*sent((k, v), device), layer=layer)
                given[layer].append(k)
    assert len(seq) == 29 and len(seq.coded) == 16
    for layer, name in enumerate(names):
        want = np.concatenate(given[layer])
        want[4:20] = coded(want[4:20], name)
        found = cache.gather([seq], layer=layer)[0].numpy()
        np.testing.assert_array_equal(found.view(np.uint16), want.view(np.uint16))
    at_once = cache.sequence()
    rows = [to_device(np.concatenate(of_layer), device) for of_layer in given]
    cache.append([at_once], rows, rows)
    again = cache.gather([at_once], layer=2)[0].numpy()
    assert len(at_once.coded) == 16 and (again == cache.gather([seq], layer=2)[0].numpy()).all()


class TestAllOrNothing:
    def grown(self, rng, device, **options):
        cache = new_cache(device, **options)
        seq, rows = cache.sequence(), tokens(rng, 18)
        seq.append(*sent(rows, device))
        model = Model(cache, ("int8", "int4"))
        model.start()
        model.append(0, *rows)
        model.check([seq])
        return cache, seq, model

    def test_too_few_pages_of_codes(self, rng, device):
        _, seq, model = self.grown(rng, device, pages=2)
        with pytest.raises(kvit.CacheFull, match="leave the window need 2 more pages of codes, and 1 are free of 2"):
            seq.append(*sent(tokens(rng, 8), device))
        model.check([seq])

    def test_too_few_pages_in_16_bits(self, rng, device):
        _, seq, model = self.grown(rng, device, exact_pages=5)
        with pytest.raises(kvit.CacheFull, match="of 5"):
            seq.append(*sent(tokens(rng, 20), device))
        model.check([seq])

    def test_an_exception_inside_of_a_step(self, rng, device):
        cache, seq, model = self.grown(rng, device)
        free = cache.exact.num_free_pages
        with pytest.raises(ZeroDivisionError), cache.step([seq], 9) as step:
            step.append(*sent(tokens(rng, 9), device))
            raise ZeroDivisionError
        model.check([seq])
        assert not step.is_open and cache.exact.num_free_pages == free

    @pytest.mark.parametrize("moment", ["before codes are there", "after that", "after the others went"])
    def test_an_exception_while_tokens_become_codes(self, rng, device, monkeypatch, moment):
        _, seq, model = self.grown(rng, device)
        rows, kind = tokens(rng, 8), kvit.Sequence if moment == "after the others went" else kvit.MixedSequence
        name = {"before codes are there": "begin_ageing", "after that": "settle"}.get(moment, "shift")
        real = getattr(kind, name)

        def broken_off(self, *given, **named):
            if name != "settle":
                real(self, *given, **named)
            elif not given:  # a call in front of all this
                return real(self)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(kind, name, broken_off)
            with pytest.raises(KeyboardInterrupt):
                seq.append(*sent(rows, device))
        model.append(0, *rows)  # the tokens are there, each once
        if moment == "before codes are there":
            model.coded[0] -= 8
        model.check([seq])
        fork = seq.fork()
        more = tokens(rng, 5)
        fork.append(*sent(more, device))
        model.check([seq])
        if moment == "before codes are there":  # and the next append makes up for it
            assert len(fork.coded) == 16

    def test_pages_that_forks_share_are_not_copied_when_tokens_age(self, rng, device):
        cache, seq, model = self.grown(rng, device)
        twin, free = seq.fork(), cache.exact.num_free_pages
        twin.append(*sent(tokens(rng, 8), device))
        model.check([seq])
        # 14 tokens in 4 pages: the last one is copied, two are new, and the two that aged are still the other's.
        assert free - cache.exact.num_free_pages == 3 and len(twin) == 26


class TestInterruptedAtAnyLine:
    """Two sequences, one a fork of the other, whose newest page leaves the window with the next four tokens."""

    class Given:
        def __init__(self, rng, device):
            self.cache = new_cache(device, pages=20, exact_pages=20)
            self.seq, self.rows = self.cache.sequence(), tokens(rng, 30)
            self.seq.append(*sent((x[:26] for x in self.rows), device))
            self.twin = self.seq.fork()
            self.new = sent((x[26:] for x in self.rows), device)
            assert len(self.seq.coded) == 12

        def check(self, *lengths):
            """Tokens are those that were given, in 16 bits or as codes, and no page is lost."""
            seqs = [seq for seq in (self.seq, self.twin) if not seq.is_freed]
            assert [len(seq) for seq in seqs] == list(lengths)
            exact, (k, v, indptr) = self.rows, self.cache.gather(seqs)
            for found, rows, name in ((k, exact[0], "int8"), (v, exact[1], "int4")):
                for i, length in enumerate(lengths):
                    got = found.numpy()[indptr.numpy()[i] : indptr.numpy()[i + 1]]
                    codes = coded(rows[:length], name)
                    assert ((got == rows[:length]) | (got == codes)).all()
            for seq in (self.seq, self.twin):
                seq.free()
            for pool in (self.cache.exact, self.cache.coded):
                assert pool.num_free_pages == pool.num_pages

    def test_an_append(self, rng, device):
        lengths = set()
        for given, is_done in at_every_line(
            lambda: self.Given(rng, device), lambda given: given.cache.append([given.seq], *given.new), step=5
        ):
            lengths.add((len(given.seq), len(given.seq.coded)))
            assert (len(given.seq), len(given.seq.coded)) == (30, 16) or not is_done
            given.check(len(given.seq), 26)
        assert {(26, 12), (30, 16)} < lengths <= {(26, 12), (30, 12), (30, 16)}

    @pytest.mark.parametrize("length", [20, 9, 2])
    def test_a_truncation(self, rng, device, length):
        # Of the newest tokens alone, into the codes, and into the sinks.
        for given, is_done in at_every_line(lambda: self.Given(rng, device), lambda given: given.seq.truncate(length)):
            assert len(given.seq) in ((length,) if is_done else (length, 26))
            given.check(len(given.seq), 26)

    def test_a_fork_and_a_free(self, rng, device):
        for given, _ in at_every_line(lambda: self.Given(rng, device), lambda given: given.seq.fork().free()):
            given.check(26, 26)
        for given, is_done in at_every_line(lambda: self.Given(rng, device), lambda given: given.twin.free()):
            assert given.twin.is_freed or not is_done
            given.check(26, *[26] * (not given.twin.is_freed))


class TestRefusals:
    def test_queries_of_tokens_that_are_codes_already(self, rng, device):
        cache = new_cache(device)
        seq = cache.sequence()
        seq.append(*sent(tokens(rng, 40), device))
        q = np.zeros((9, 4, DIM), BFLOAT16)
        with pytest.raises(kvit.ShapeError, match="has 9 queries, and its newest 8 tokens are in 16 bits"):
            cache.attention(to_device(q, device), [seq])
        cache.attention(to_device(q[:8], device), [seq])

    def test_sequences_of_others(self, rng, device):
        cache, other = new_cache(device), new_cache(device)
        k, v = sent(tokens(rng, 1), device)
        with pytest.raises(kvit.ShapeError, match=r"seqs\[0\] is of another cache"):
            cache.append([other.sequence()], k, v)
        with pytest.raises(TypeError, match="a sequence of a kvit.MixedCache"):
            cache.append([cache.exact.sequence()], k, v)
        with pytest.raises(kvit.ShapeError, match="step is of another cache"):
            cache.attention(k, other.step([other.sequence()], 1))

    def test_freed_sequences(self, rng, device):
        seq = new_cache(device).sequence()
        seq.free()
        seq.free()
        with pytest.raises(kvit.SequenceFreed):
            seq.append(*sent(tokens(rng, 1), device))
        with pytest.raises(kvit.SequenceFreed):
            seq.fork()

    @pytest.mark.parametrize("options", [{"window": -1}, {"sinks": -1}], ids=str)
    def test_negative_counts(self, device, options):
        with pytest.raises(kvit.ShapeError, match="give numbers of tokens from 0 on"):
            new_cache(device, **options)

    @pytest.mark.parametrize("spec", [{"window": 128}, {"v_dim": 32}, {"shares_kv": True}], ids=str)
    def test_layers_whose_tokens_cannot_lie_in_two_caches(self, device, spec):
        with pytest.raises(kvit.ShapeError, match=f"has {next(iter(spec))}, which a MixedCache does not offer"):
            new_cache(device, layers=[kvit.LayerSpec(**spec)])

    def test_truncation_to_what_is_not_there(self, rng, device):
        seq = new_cache(device).sequence()
        seq.append(*sent(tokens(rng, 30), device))
        with pytest.raises(kvit.ShapeError, match="a sequence of 30 tokens to 31; give 0 to 30"):
            seq.truncate(31)
        assert len(seq) == 30

    def test_copies(self, device):
        cache = new_cache(device)
        for thing, words in ((cache, "make another MixedCache"), (cache.sequence(), "fork")):
            with pytest.raises(TypeError, match=words):
                copy.copy(thing)

    def test_queries_for_all_layers_at_once(self, rng, device):
        cache = new_cache(device, layers=2)
        k, v = sent(tokens(rng, 3), device)
        with pytest.raises(kvit.ShapeError, match="q is of one layer"):
            cache.append([cache.sequence()], [k, k], [v, v], q=k)
        with pytest.raises(kvit.ShapeError, match="give an array for each layer"):
            cache.append([cache.sequence()], [k], [v])
