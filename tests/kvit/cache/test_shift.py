"""PagedCache.shift: the oldest tokens go behind the first ones, what lies behind them turns to its new places."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import rotation_of
from support.caches import assert_cache_attention, held, new_cache, new_tokens, to_device

ROPE = kvit.Rope(64, rotary_dim=32)
PAGE = 4


def turned(k, positions):
    return reference.rotate(k, positions, rotation_of(ROPE))


class Grown:
    """A cache of pages of four tokens, with sequences of some length; `contents` is what each should hold."""

    def __init__(self, rng, device, lengths, pages=40, **options):
        self.cache = new_cache(device, pages=pages, page_size=PAGE, rope=ROPE, **options)
        self.seqs = [self.cache.sequence() for _ in lengths]
        self.contents = []
        for seq, length in zip(self.seqs, lengths, strict=True):
            k, v = new_tokens(rng, length)
            seq.append(to_device(k, device), to_device(v, device))
            self.contents.append((turned(k, np.arange(length)), v))

    def drop(self, i, drop, keep):
        """What sequence i should hold after a shift: two rotations, each rounded."""
        k, v = self.contents[i]
        behind = turned(k[keep + drop :], np.full(len(k) - keep - drop, -drop))
        self.contents[i] = np.concatenate([k[:keep], behind]), np.concatenate([v[:keep], v[keep + drop :]])

    def check(self):
        for seq, expected in zip(self.seqs, self.contents, strict=True):
            assert len(seq) == len(expected[0])
            for found, wanted in zip(held(self.cache, [seq]), expected, strict=True):
                np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))
        pages = [page for seq in self.seqs for page in seq.pages]
        assert [self.cache.pool.owners(p) for p in range(self.cache.num_pages)] == [
            pages.count(p) for p in range(self.cache.num_pages)
        ]
        assert all(len(seq.pages) == -(-len(seq) // PAGE) for seq in self.seqs)


@pytest.mark.parametrize("length", [8, 21, 24])
@pytest.mark.parametrize("drop", [0, 1, 3, 4, 5, 8])
@pytest.mark.parametrize("keep", [0, 2, 4, 7])
def test_a_sequence_drops_tokens_behind_its_first_ones(rng, device, keep, drop, length):
    # By whole pages and not, from the middle of a page and not, to the end of the sequence and not.
    if keep + drop > length:
        pytest.skip("more tokens than there are")
    case = Grown(rng, device, [length])
    case.seqs[0].shift(drop, keep=keep)
    case.drop(0, drop, keep)
    case.check()


def test_several_sequences_drop_numbers_of_their_own(rng, device):
    case = Grown(rng, device, [20, 7, 0, 13])
    case.cache.shift(case.seqs, [8, 7, 0, 2], keep=np.array([3, 0, 0, 1]))
    for i, (drop, keep) in enumerate([(8, 3), (7, 0), (0, 0), (2, 1)]):
        case.drop(i, drop, keep)
    case.check()


@pytest.mark.parametrize("drop", [4, 6])
def test_pages_that_forks_have_too_are_not_written(rng, device, drop):
    # Both forks of one call move at once, and a third one, which stays, keeps its tokens.
    case = Grown(rng, device, [19])
    case.seqs += [case.seqs[0].fork(), case.seqs[0].fork()]
    case.contents *= 3
    case.cache.shift(case.seqs[:2], drop, keep=[2, 5])
    case.drop(0, drop, 2)
    case.drop(1, drop, 5)
    case.check()
    case.seqs.pop(2).free()
    case.contents.pop(2)
    case.cache.shift(case.seqs, 4)
    for i in range(2):
        case.drop(i, 4, 0)
    case.check()


@pytest.mark.parametrize("keep, drop", [(3, 8), (3, 9), (4, 9)])
def test_a_full_cache_shifts_into_the_pages_of_what_it_drops(rng, device, keep, drop):
    # llama.cpp drops half of what lies behind the first ones when a context is full: no page is free then.
    case = Grown(rng, device, [19], pages=5)
    assert case.cache.num_free_pages == 0
    case.seqs[0].shift(drop, keep=keep)
    case.drop(0, drop, keep)
    case.check()
    case.seqs[0].append(*(to_device(x, device) for x in new_tokens(rng, 1)))
    assert len(case.seqs[0]) == 20 - drop


def test_a_shift_that_finds_no_room_changes_nothing(rng, device):
    case = Grown(rng, device, [19, 4], pages=6)
    with pytest.raises(kvit.CacheFull, match="needs 4 more pages and has 0 free"):
        case.cache.shift(case.seqs, [3, 0])  # five pages become four others, of which none is free
    case.check()


@pytest.mark.parametrize("pair", [("int8", "int8"), ("int4", "int4"), ("float8_e4m3", "int4")], ids=str)
def test_stored_codes_of_v_move_as_they_are_and_keys_are_encoded_again(rng, device, pair):
    case = Grown(rng, device, [21], k=pair[0], v=pair[1])
    before = held(case.cache, case.seqs)
    case.seqs[0].shift(6, keep=5)
    k, v = held(case.cache, case.seqs)
    np.testing.assert_array_equal(v, np.concatenate([before[1][:5], before[1][11:]]))
    np.testing.assert_array_equal(k[:5], before[0][:5])
    # Encoding by itself: the error of a code, which is half a step of the row's range, or of float8's last bit.
    exact = turned(before[0][11:], np.full(10, -6)).astype(float)
    step = {"int8": 1 / 255, "int4": 1 / 15, "float8_e4m3": 1 / 14}[pair[0]] * np.ptp(exact, axis=-1, keepdims=True)
    assert (np.abs(k[5:].astype(float) - exact) <= 0.51 * step + 0.02).all()


def test_attention_after_a_shift_is_that_of_tokens_that_were_always_there(rng, device):
    # Scores depend on distances alone, so a cache that never held the dropped tokens answers alike.
    case = Grown(rng, device, [30])
    case.seqs[0].shift(13, keep=4)
    case.drop(0, 13, 4)
    k, v = new_tokens(rng, 1)
    q = rng.standard_normal((1, 4, 64)).astype(k.dtype)
    case.seqs[0].append(to_device(k, device), to_device(v, device))  # to place 17
    contents = [np.concatenate(x) for x in zip(case.contents[0], (turned(k, [17]), v), strict=True)]
    assert_cache_attention(case.cache, case.seqs, [contents], q, [1])


def test_a_cache_without_a_rope_moves_keys_as_they_are_if_it_is_told_so(rng, device):
    cache = new_cache(device, page_size=PAGE)
    seq, rows = cache.sequence(), new_tokens(rng, 15)
    seq.append(*(to_device(x, device) for x in rows))
    with pytest.raises(ValueError, match="the cache has no rope, .* or say rotate=False"):
        seq.shift(5)
    seq.shift(5, keep=2, rotate=False)
    for found, given in zip(held(cache, [seq]), rows, strict=True):
        np.testing.assert_array_equal(found, np.concatenate([given[:2], given[7:]]))


def test_a_cache_that_is_stored_anew_shifts_by_its_new_codec(rng, device):
    case = Grown(rng, device, [12])
    case.seqs[0].shift(4)
    case.cache.requantise(k="int8", v="int8")
    k, _ = held(case.cache, case.seqs)
    case.seqs[0].shift(4)
    expected = turned(k[4:], np.full(4, -4)).astype(float)
    found = held(case.cache, case.seqs)[0].astype(float)
    assert np.abs(found - expected).max() <= 0.02 + np.ptp(expected) / 255


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((9,), {"keep": 2}, "cannot keep 2 and drop 9 tokens of a sequence of 10"),
        ((-1,), {}, "cannot keep 0 and drop -1 tokens"),
        ((1,), {"keep": -1}, "cannot keep -1 and drop 1"),
        ((1.5,), {}, "drop is 1.5; it must be a whole number"),
        (([1, 2],), {}, "drop has 2 numbers for 1 sequences"),
        ((np.uint8(250),), {}, "drop 250 tokens of a sequence of 10"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(rng, device, arguments, options, message):
    case = Grown(rng, device, [10])
    with pytest.raises(kvit.ShapeError, match=message):
        case.cache.shift(case.seqs, *arguments, **options)
    case.check()


def test_sequences_that_are_freed_or_named_twice_are_refused(rng, device):
    case = Grown(rng, device, [10, 5])
    with pytest.raises(kvit.ShapeError, match="again; give each sequence once"):
        case.cache.shift([case.seqs[0]] * 2, 1)
    case.check()
    case.seqs[0].free()
    with pytest.raises(kvit.SequenceFreed):
        case.cache.shift(case.seqs, 1)
