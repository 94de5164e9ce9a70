"""Hunts for what a wrong page table, length or offset does beyond its own sequence: attention, append, gather.

Each row of a call is compared with a model of its own. Memory lies at any address, between fences, in pages of poison.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native import host
from support import tolerances
from support.caches import BFLOAT16, FLOAT16
from support.fenced import Fenced, FencedCache, places_alike
from support.quantised import attention_bound_of
from support.stored import fill
from support.wrong_tables import right_numbers, spoil

PAIRS = [(None, None)] * 4 + [
    ("int8", "int8"), ("int4", "int4"), ("int8", "int4"), ("float8_e4m3", "float8_e4m3"), (None, "int8"),
    ("float8_e5m2", "float8_e5m2"), ("float8_e4m3", "int4"),
]  # fmt: skip
GPU_CALLS = 10_000


class Scene:
    """A cache full of rows, a table of which something may be wrong, all of it between fences on a device."""

    def __init__(self, rng, device, *, writes_pages=False):
        self.rng, self.device = rng, device
        self.dtype = [BFLOAT16, FLOAT16][rng.integers(2)]
        names = [name or self.dtype.name for name in PAIRS[rng.integers(len(PAIRS))]]
        self.heads, self.dim = int(rng.integers(1, 4)), int(rng.choice([64, 64, 64, 128]))
        num_pages, page_size = int(rng.integers(1, 9)), int(rng.choice([1, 2, 3, 4, 7, 8, 16, 32, 64]))
        # A scale for each head, as a calibration gives it; the integers find their own.
        scales = [rng.uniform(0.02, 0.1, self.heads).astype("f4") if x.startswith("float8") else None for x in names]
        self.cache = reference.Cache.poisoned(
            num_pages, page_size, self.heads, self.dim, dtype=self.dtype, k=names[0], v=names[1],
            layout=["NHD", "HND"][rng.integers(2)], k_scale=scales[0], v_scale=scales[1],
        )  # fmt: skip
        fill(rng, self.cache, self.dtype)
        self.numbers = right_numbers(
            rng, num_pages, page_size, is_ragged=bool(rng.integers(2)), has_offsets=bool(rng.integers(2)),
            distinct=writes_pages,
        )  # fmt: skip
        self.poison_what_nobody_reads()
        spoil(rng, self.numbers, num_pages)
        self.memory = Fenced(rng, device)
        self.stored = FencedCache(self.memory, self.cache, self.dtype)
        self.view = self.stored.view
        pages, lengths = self.up("pages", self.numbers.pages), self.up("lengths", self.numbers.lengths)
        if self.numbers.indptr is None:
            self.table = kvit.PageTable(pages, lengths=lengths)
        else:
            self.table = kvit.PageTable(indptr=self.up("indptr", self.numbers.indptr), indices=pages, lengths=lengths)
        self.offsets = None if self.numbers.offsets is None else self.up("query_indptr", self.numbers.offsets)

    def poison_what_nobody_reads(self):
        """NaN in every token that no sequence of the right table has."""
        seen = np.zeros((self.cache.num_pages, self.cache.page_size), bool)
        for s in range(self.numbers.num_sequences):
            table = reference.Table([self.numbers.pages_of(s)], [int(self.numbers.lengths[s])])
            page, row = table.places(self.cache, 0)
            seen[page, row] = True
        for store in self.cache.stores():
            store.data.view(np.uint8)[~seen] = 0xFF
            if store.params is not None and not store.codec.is_scaled:
                store.params.view(np.uint8)[~seen] = 0xFF

    def up(self, name, array):
        return self.memory.place(name, array)

    def rows(self, heads):
        return self.rng.standard_normal((self.numbers.total, heads, self.dim)).astype(self.dtype)

    def output(self, name, heads, dtype=None):
        shape = (self.numbers.total, heads, *([] if dtype else [self.dim]))
        return self.up(name, np.full(shape, -7, dtype or self.dtype))

    def claims(self):
        """[row] -> the sequences whose offsets name it."""
        claims = [[] for _ in range(self.numbers.total)]
        for s in range(self.numbers.num_sequences):
            begin, end, _ = self.numbers.rows_of(s)
            for row in range(begin, end):
                claims[row].append(s)
        return claims

    def check_fault(self, op, hunt):
        """What the operation reports is wrong indeed, and where something that it met is wrong, it reports it."""
        bad = {s for s in range(self.numbers.num_sequences) if not self.numbers.is_right(self.cache, s)}
        try:
            op.check()
        except kvit.PageTableError as error:
            found = error.sequence, error.slot, error.value
            hunt.count("faults told")
            return found, bad
        hunt.count("right")
        return None, bad


@pytest.fixture
def settings():
    """The host backend's, to be changed and put back."""
    before = host.configure()
    yield lambda rng: host.configure(seed=int(rng.integers(1 << 30)), workers=int(rng.integers(1, 4)))
    host.configure(**before)


def at_least(device):
    return 0 if device == "host" else GPU_CALLS


@pytest.mark.hunt(share=6, short=25)
def test_attention_gives_each_row_its_own_result_or_nan(hunt, settings, device):
    for rng in hunt.rounds(at_least(device)):
        scene = Scene(rng, device)
        settings(rng)
        query_heads, causal = scene.heads * int(rng.choice([1, 2, 5])), bool(rng.integers(2))
        q = scene.rows(query_heads)
        options = {"causal": causal, "tokens_per_sequence": int(rng.integers(1, 5))}
        op = kvit.Attention(scene.view, query_heads, **options)
        if rng.integers(3) == 0:
            op = kvit.Attention(scene.view, query_heads, split_tokens=op.kernel.facts["tile_tokens"], **options)
        placed, out, lse = scene.up("q", q), scene.output("out", query_heads), scene.output("lse", query_heads, "f4")
        for _ in range(int(rng.integers(1, 3))):  # the second call finds the workspace that the first one left
            op(placed, scene.view, scene.table, out=out, lse=lse, query_indptr=scene.offsets)
        fault, bad = scene.check_fault(op, hunt)
        scene.memory.assert_untouched(out, lse)
        found = scene.memory.bytes_of(out).view(scene.dtype).reshape(q.shape).astype(np.float64)
        sums = scene.memory.bytes_of(lse).view(np.float32).reshape(q.shape[:2])
        must_tell = compare_attention(scene, q, found, sums, causal, bad)
        assert fault is not None or not must_tell, f"nobody told of sequences {sorted(must_tell)}"
        assert fault is None or (fault[0] in bad and scene.numbers.names(*fault)), (fault, bad, scene.numbers)


def compare_attention(scene, q, found, sums, causal, bad):
    """Every row against the model of its sequence; returns the sequences of which a fault must be told."""
    must_tell = set()
    numbers, claims = scene.numbers, scene.claims()
    for row, owners in enumerate(claims):
        if not owners:
            assert (found[row] == -7).all() and (sums[row] == -7).all(), f"row {row} belongs to nobody, and was written"
    for s in range(numbers.num_sequences):
        begin, end, has_offsets = numbers.rows_of(s)
        mine = [row for row in range(begin, end) if claims[row] == [s]]
        if not mine:
            continue
        pages, length = numbers.pages_of(s), int(numbers.lengths[s])
        table = reference.Table([[] if pages is None else pages], [length])
        if pages is None or not has_offsets or not table.has_room(scene.cache, 0):
            must_tell.add(s)
            assert np.isnan(found[mine]).all(), f"sequence {s} is wrong, and rows {mine} are not NaN"
            continue
        mine = np.array(mine)
        state = reference.paged_attention(q[begin:end], scene.cache, table, [end - begin], causal=causal)
        bound = attention_bound_of(scene.cache, table, q[begin:end], [end - begin], scene.dtype, causal=causal)
        wanted, limit = state.out[mine - begin], bound[mine - begin]
        wanted_sums = state.lse[mine - begin]
        is_nan = np.isnan(wanted_sums)
        if sees_no_place(scene.cache, table, mine - begin, end - begin, causal):
            must_tell.add(s)
        if s in bad:  # whole tiles are looked at: other rows may be NaN too
            is_nan |= np.isnan(found[mine]).all(axis=2)
        assert np.isnan(found[mine][is_nan]).all()
        tolerances.assert_within(found[mine][~is_nan], wanted[~is_nan], limit[~is_nan])
        tolerances.assert_within(sums[mine][~is_nan], wanted_sums[~is_nan], tolerances.SCORE_QUANTISED)
    return must_tell


def sees_no_place(cache, table, queries, num_queries, causal):
    """Whether any of these queries of the one sequence of a table sees a token whose page does not exist."""
    page, _ = table.places(cache, 0)
    seen = (reference.visible_keys(len(page), num_queries, int(query), causal) for query in queries)
    return any((page[keys.begin : max(keys.begin, keys.end)] < 0).any() for keys in seen)


def row_models(scene):
    """[row] -> the place (page, token in page) in each sequence that names the row; None for one that has no place."""
    numbers, models = scene.numbers, []
    for row, owners in enumerate(scene.claims()):
        models.append([])
        for s in owners:
            _, end, has_offsets = numbers.rows_of(s)
            position, pages, place = int(numbers.lengths[s]) - (end - row), numbers.pages_of(s), None
            table = reference.Table([[] if pages is None else pages], [int(numbers.lengths[s])])
            if has_offsets and position >= 0 and table.has_room(scene.cache, 0):
                page, token = (x[position] for x in table.places(scene.cache, 0))
                place = (int(page), int(token)) if page >= 0 else None
            models[-1].append(place)
    return models


def offsets_rise(numbers):
    return numbers.offsets is None or bool((np.diff(numbers.offsets.astype(np.int64)) >= 0).all())


@pytest.mark.hunt(share=4, short=25)
def test_gather_gives_each_row_its_own_token_or_nan(hunt, settings, device):
    for rng in hunt.rounds(at_least(device)):
        scene = Scene(rng, device)
        settings(rng)
        op = kvit.Gather(scene.view)
        outs = [scene.output(name, scene.heads) for name in "kv"]
        op(scene.view, scene.table, out=outs, query_indptr=scene.offsets)
        fault, bad = scene.check_fault(op, hunt)
        scene.memory.assert_untouched(*outs)
        found = [scene.memory.bytes_of(out).view(scene.dtype).reshape(-1, scene.heads, scene.dim) for out in outs]
        models = row_models(scene)
        for row, places in enumerate(models):
            for rows, store in zip(found, scene.cache.stores(), strict=True):
                check_gathered(scene, row, rows[row], places, store, bad)
        must_tell = lacks_a_place(scene.numbers, models)
        assert fault is not None or not must_tell, (models, scene.numbers)
        assert fault is None or bad or must_tell, (fault, scene.numbers)


def lacks_a_place(numbers, models):
    """Whether some row has no place, and lies where offsets, rising or not, say that it is somebody's."""
    first, last = (0, numbers.total) if numbers.offsets is None else map(int, numbers.offsets[[0, -1]])
    return any(places == [None] and first <= row < last for row, places in enumerate(models))


def check_gathered(scene, row, found, places, store, bad):
    """One row of K or V: its token, NaN where it has no place, and left alone where it is nobody's."""
    is_left, is_nan = (found == -7).all(), np.isnan(found.astype(np.float32)).all()
    if not places:
        assert is_left or bad, f"row {row} is nobody's, and was written"
        return
    # Offsets that fall lead the search astray: then a row may be taken for nobody's, or have no place.
    is_astray = not offsets_rise(scene.numbers)
    allowed = [is_nan and (is_astray or None in places or len(places) > 1), is_left and is_astray]
    for page, token in filter(None, places):
        wanted = store.read(np.array([page]), np.array([token]), scene.dtype)[0]
        allowed.append(np.array_equal(found.astype("f4"), wanted.astype("f4"), equal_nan=True))
    assert any(allowed), f"row {row} is none of {places}"


@pytest.mark.hunt(share=4, short=25)
def test_append_writes_each_row_to_its_own_place_or_nowhere(hunt, settings, device):
    for rng in hunt.rounds(at_least(device)):
        scene = Scene(rng, device, writes_pages=True)
        settings(rng)
        op = kvit.Append(scene.view)
        k, v = scene.rows(scene.heads), scene.rows(scene.heads)
        op(scene.up("new k", k), scene.up("new v", v), scene.view, scene.table, query_indptr=scene.offsets)
        fault, bad = scene.check_fault(op, hunt)
        scene.memory.assert_untouched(*scene.stored.written())
        models = row_models(scene)
        compare_pools(scene, k, v, models)
        must_tell = lacks_a_place(scene.numbers, models)
        assert fault is not None or not must_tell, (models, scene.numbers)
        assert fault is None or bad or must_tell, (fault, scene.numbers)


def compare_pools(scene, k, v, models):
    """Every place of the pools holds what it held, or the one row that belongs there."""
    taken = {}  # place -> the rows that may be written there
    for row, places in enumerate(models):
        for place in filter(None, places):
            taken.setdefault(place, []).append(row)
    several = any(len(places) > 1 for places in models)
    may_be_left = several or not offsets_rise(scene.numbers)
    found, wanted = scene.stored.now(), scene.stored.copied()
    free = np.zeros((scene.cache.num_pages, scene.cache.page_size), bool)  # places of which nothing is said
    for (page, token), rows in taken.items():
        free[page, token] = len(rows) > 1
        for store, new in zip(wanted.stores(), (k, v), strict=True):
            store.write(np.array([page]), np.array([token]), new[rows[0]][None])
    same, is_old = places_alike(found, wanted), places_alike(found, scene.cache)
    is_allowed = same | free | (is_old if may_be_left else False)
    assert is_allowed.all(), f"(page, token) {np.argwhere(~is_allowed).tolist()} hold something else"
