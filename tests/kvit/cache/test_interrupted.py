"""A PagedCache whose calls are interrupted at any line: each change is whole or has not been, and no page is lost."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, new_tokens
from support.interrupts import at_every_line
from support.owned_pages import Given


def grew(given, *seqs):
    """Whether an append of `new`, in equal shares, is to be seen in its sequences: in all of them or in none."""
    shares = np.split(given.new, len(seqs), axis=1)
    all_three = [given.first, given.second, given.third]
    has_grown = len(seqs[0]) > given.before[all_three.index(seqs[0])].shape[1]
    expected = [
        np.concatenate([rows, shares[seqs.index(seq)]], axis=1) if seq in seqs and has_grown else rows
        for seq, rows in zip(all_three, given.before, strict=True)
    ]
    given.check(all_three, expected)
    return has_grown


@pytest.mark.parametrize("names", [("first",), ("second",), ("second", "third"), ("first", "second", "third")], ids=str)
def test_an_append_is_whole_or_has_not_been(names):
    def seqs(given):
        return [getattr(given, name) for name in names]

    outcomes = set()
    for given, is_done in at_every_line(Given, lambda given: given.cache.append(seqs(given), *given.new)):
        outcomes.add(grew(given, *seqs(given)))
        assert outcomes == {True, False} or not is_done  # both were met before the call came to its end
    assert outcomes == {True, False}


@pytest.mark.parametrize("length", [0, 3, 4, 6])
def test_a_truncation_is_whole_or_has_not_been(length):
    for given, is_done in at_every_line(Given, lambda given: given.second.truncate(length)):
        first, second, third = given.before
        assert len(given.second) in ((length,) if is_done else (length, 7))
        given.check([given.first, given.second, given.third], [first, second[:, : len(given.second)], third])


def test_a_fork_is_whole_or_has_not_been():
    for given, is_done in at_every_line(Given, lambda given: vars(given).update(fork=given.first.fork())):
        forks = [given.fork] if is_done else []
        given.check([given.first, given.second, given.third, *forks], given.before + given.before[: len(forks)])


@pytest.mark.parametrize("free", [lambda given: given.second.free(), lambda given: vars(given).pop("second")])
def test_a_sequence_that_is_freed_or_goes_takes_all_its_pages_along(free):
    for given, is_done in at_every_line(Given, free):
        left = [given.second] if "second" in vars(given) and not given.second.is_freed else []
        assert not (left and is_done)
        first, second, third = given.before
        given.check([given.first, *left, given.third], [first, *[second] * len(left), third])


def test_a_new_sequence_that_nobody_got_leaves_nothing():
    for given, _ in at_every_line(Given, lambda given: given.cache.sequence()):
        given.check([given.first, given.second, given.third], given.before)


@pytest.mark.parametrize("order", ["front", "sequences"])
def test_pages_move_with_their_tokens_or_not_at_all(order):
    for given, is_done in at_every_line(Given, lambda given: given.cache.defragment(order=order)):
        given.check([given.first, given.second, given.third], given.before)
        assert not is_done or given.cache.pool.used() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["first", "second"])  # one with pages of its own, which turn in place, one without
@pytest.mark.parametrize("drop", [3, 4])
def test_a_shift_is_whole_or_has_not_been(name, drop):
    rope = kvit.Rope(64)

    def prepare():
        # Rows of a cache with a rope turn as they come; what gather gives of them then is what they are.
        return Given(rope=rope)

    for given, is_done in at_every_line(prepare, lambda given: getattr(given, name).shift(drop, keep=1), step=3):
        expected, seq = list(given.before), getattr(given, name)
        if is_done or len(seq) < expected[["first", "second"].index(name)].shape[1]:
            k, v = expected[["first", "second"].index(name)]
            turns = reference.Rotation(rope.steps)
            behind = reference.rotate(k[1 + drop :], np.full(len(k) - 1 - drop, -drop), turns)
            shifted = np.stack([np.concatenate([k[:1], behind]), np.concatenate([v[:1], v[1 + drop :]])])
            expected[["first", "second"].index(name)] = shifted
        given.check([given.first, given.second, given.third], expected)


def test_pages_of_codes_move_with_their_parameters_or_not_at_all():
    # Codes and parameters are two launches: no Python code may run between them, of other modules neither.
    cut = 0
    for given, is_done in at_every_line(
        lambda: Given(k="int8", v="int4"), lambda given: given.cache.defragment(order="sequences"), everywhere=True
    ):
        given.check([given.first, given.second, given.third], given.before)
        cut += not is_done
    assert cut > 50


def test_a_cache_is_stored_anew_or_as_before():
    for given, is_done in at_every_line(Given, lambda given: given.cache.requantise(k="int8", v="int4"), step=7):
        seqs = [given.first, given.second, given.third]
        kinds = [codec.name for codec in given.cache.view.codecs]
        assert kinds == ["int8", "int4"] if is_done else kinds in (["int8", "int4"], ["bfloat16"] * 2)
        if kinds == ["bfloat16"] * 2:
            given.check(seqs, given.before)
        given.first.append(*given.new)  # all operations go with the pages that there are
        q = np.zeros((3, 2, 64), BFLOAT16)
        kvit.attention(q, given.cache, seqs)
        given.cache.check()
        given.check(seqs, [given.read(seq) for seq in seqs])


def test_a_call_of_attention_or_gather_changes_nothing():
    def call(given):
        seqs = [given.first, given.second, given.third]
        kvit.attention(np.zeros((3, 2, 64), BFLOAT16), given.cache, seqs, return_lse=True)
        given.cache.gather(seqs)
        given.cache.table(seqs)

    for given, _ in at_every_line(Given, call, step=5):
        given.check([given.first, given.second, given.third], given.before)


class ManyLayers:
    """A cache of layers alike and one apart, two sequences that share a page, and rows for a step of both."""

    def __init__(self):
        rng = np.random.default_rng(1)
        specs = [kvit.LayerSpec(count=2), kvit.LayerSpec(k="int8", v="int4"), kvit.LayerSpec()]
        self.cache = kvit.PagedCache(12, 4, 1, 64, layers=specs, device="host")
        self.gone, self.first = self.cache.sequence(), self.cache.sequence()
        for seq, count in ((self.gone, 5), (self.first, 6)):
            rows = [new_tokens(rng, count, kv_heads=1) for _ in range(4)]
            self.cache.append([seq], *([x[side] for x in rows] for side in range(2)))
        self.second = self.first.fork()
        self.gone.free()
        self.new = [new_tokens(rng, 6, kv_heads=1) for _ in range(4)]
        self.before = self.read()

    def read(self):
        seqs = [self.first, self.second]
        return [[x.numpy() for x in layer.gather([seq])[:2]] for layer in self.cache.layers for seq in seqs]

    def step(self):
        with self.cache.step([self.first, self.second], 3) as step:
            for layer, rows in zip(self.cache.layers, self.new, strict=True):
                layer.append(step, *rows)

    def check(self):
        """All layers of both sequences are as before, or as a whole step leaves them. Returns which."""
        lengths = {len(self.first), len(self.second)}
        assert lengths in ({6}, {9})
        for found, old in zip(self.read(), self.before, strict=True):
            for x, y in zip(found, old, strict=True):
                np.testing.assert_array_equal(x[:6], y)
        if lengths == {9}:
            # Layers of 16 bits hold the new rows as they are.
            for i in (0, 1, 3):
                for s in range(2):
                    np.testing.assert_array_equal(self.read()[2 * i + s][0][6:], self.new[i][0][3 * s : 3 * s + 3])
        pages = [page for seq in (self.first, self.second) for page in seq.pages]
        assert [self.cache.pool.owners(page) for page in range(12)] == [pages.count(page) for page in range(12)]
        assert len(self.cache.pool.all_pages()) == 2
        return lengths == {9}


def test_a_step_of_many_layers_is_whole_or_has_not_been():
    outcomes = set()
    for given, is_done in at_every_line(ManyLayers, ManyLayers.step):
        outcomes.add(given.check())
        assert not is_done or outcomes == {True, False}
        given.step()  # and goes on
        assert {len(given.first), len(given.second)} <= {9, 12}


@pytest.mark.parametrize("order", ["front", "sequences"])
def test_pages_of_many_layers_move_together_or_not_at_all(order):
    cut = 0
    for given, is_done in at_every_line(ManyLayers, lambda given: given.cache.defragment(order=order), everywhere=True):
        assert given.check() is False
        cut += not is_done
    assert cut > 50


def test_a_shift_of_many_layers_is_whole_or_has_not_been():
    for given, is_done in at_every_line(
        ManyLayers, lambda given: given.cache.shift([given.first], 3, keep=1, rotate=False), step=2
    ):
        length = len(given.first)
        assert length == 3 if is_done else length in (3, 6)
        for found, old in zip(given.read()[::2], given.before[::2], strict=True):
            for x, y in zip(found, old, strict=True):
                np.testing.assert_array_equal(x, y if length == 6 else np.concatenate([y[:1], y[4:]]))
        for found, old in zip(given.read()[1::2], given.before[1::2], strict=True):
            np.testing.assert_array_equal(found[0], old[0])


def test_a_swap_changes_nothing_or_brings_a_whole_sequence():
    for given, is_done in at_every_line(
        ManyLayers,
        lambda given: vars(given).update(back=given.cache.swap_in(given.cache.swap_out(given.first))),
        step=5,
    ):
        if "back" in vars(given):
            for layer in given.cache.layers:
                for x, y in zip(layer.gather([given.back])[:2], layer.gather([given.first])[:2], strict=True):
                    np.testing.assert_array_equal(x.numpy(), y.numpy())
            del given.back
        assert given.check() is False or not is_done
