"""kvit.Shift: cached keys turned to other positions, in place or on the way to other pages: the reference's bits."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import Setup, rotation_of
from support.caches import FLOAT16, make_table

PAIRS = [
    (None, None),
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("float8_e5m2", "float8_e5m2"),
    ("int8", "int4"),
    ("float8_e4m3", "int4"),
    (None, "int8"),
]
EVEN_PAIRS = PAIRS[:4]  # those that are built for head_dim 256
LENGTHS = [37, 3, 0, 50]
BY, FIRST = [-11, 5, -4, 1000], [12, 0, 0, 33]  # in the middle of a page, all, of nothing, behind a page's end


class Filled(Setup):
    """A cache in which every sequence has its tokens, turned to their places; pages of nobody are poison."""

    def __init__(self, rng, pair=("int8", "int8"), rope=None, lengths=LENGTHS, **options):
        super().__init__(rng, pair, lengths=list(lengths), **options)
        self.rope = kvit.Rope(self.head_dim) if rope is None else rope
        k, v = self.rows(lengths)
        reference.append(self.cache, self.table, k, v, lengths, rotation=rotation_of(self.rope))
        for name, buffer in self.buffers.items():
            buffer.copy_from(self.host[name])

    def shift(self, by, rope="own", **options):
        operation = kvit.Shift(self.view, self.rope if rope == "own" else rope)
        table = options.pop("table", self.page_table)
        operation(self.view, table, by, **options)
        operation.check()

    def expect(self, by, first, table=None, source=None, rope="own"):
        rotation = rotation_of(self.rope) if rope == "own" else None
        reference.shift(self.cache, table or self.table, by, first, rotation, self.dtype, source)

    def integers(self, numbers):
        return self.up(np.array(numbers, np.int32))

    def other_pages(self, rng, lengths):
        """A table of pages that held nothing, in no order: in the reference's words and on the device."""
        slots = [-(-length // 16) for length in lengths]
        pages = rng.permutation(np.setdiff1d(np.arange(self.cache.num_pages), np.concatenate(self.table.pages)))
        pages = np.split(pages[: sum(slots)].astype(np.int32), np.cumsum(slots)[:-1])
        return reference.Table(pages, lengths), make_table(pages, lengths, "ragged", self.device)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_keys_turn_in_place_and_nothing_else_changes(rng, device, pair, head_dim):
    if head_dim == 256 and pair not in EVEN_PAIRS:
        pytest.skip("not built")
    case = Filled(rng, pair, head_dim=head_dim, device=device)
    case.expect(BY, FIRST)
    case.shift(case.integers(BY), first=case.integers(FIRST))
    case.assert_same()


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_shift_leaves_what_gather_a_rotation_and_append_would(rng, device, pair):
    # float16 for the other half of the kernels. Of the whole cache: the bits of the rows that nobody has are poison.
    case = Filled(rng, pair, dtype=FLOAT16, device=device)
    k, v, _ = reference.gather(case.cache, case.table, case.dtype)
    turned = reference.rotate(k, np.full(len(k), -1_000_000), rotation_of(case.rope))
    values = [array.copy() for array in (case.cache.v, case.cache.v_params) if array is not None]
    reference.append(case.cache, case.table, turned, v, LENGTHS)
    case.cache.v[...] = values[0]  # encoded again, they may differ: a shift does not touch them
    if case.cache.v_params is not None:
        case.cache.v_params[...] = values[1]
    case.shift(-1_000_000)
    case.assert_same()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_tokens_move_to_other_pages_and_their_keys_turn(rng, device, pair, layout):
    # Of 37 and 50 tokens 11 and 9 are dropped behind the first 12 and 33: rows of two pages meet in one.
    case = Filled(rng, pair, layout=layout, device=device, lengths=[37, 50], spare_pages=9)
    table, on_device = case.other_pages(rng, [26, 41])
    case.expect([-11, -9], [12, 33], table, case.table)
    case.shift(case.integers([-11, -9]), first=case.integers([12, 33]), source=case.page_table, table=on_device)
    case.assert_same()


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
                                     {"mrope_section": [4, 6, 6], "mrope_interleaved": True}], ids=str)  # fmt: skip
def test_any_rope_turns_what_it_turned_before(rng, device, scaling, interleaved):
    # YaRN's attention factor is in the keys already. On three axes, all of them shift alike.
    rope = kvit.Rope(64, rotary_dim=32, interleaved=interleaved, scaling=scaling)
    case = Filled(rng, rope=rope, device=device)
    case.expect([-3] * 4, [2] * 4)
    case.shift(-3, first=2)
    case.assert_same()
    places = np.arange(34)
    k = case.random(34, 3, 64)
    if rope.axes is None:  # what is turned to p and shifted by 7 was turned to p + 7, but for a rounding
        at_once = reference.rotate(k, places + 7, rotation_of(rope))
        plain = reference.Rotation(rope.steps, rope.interleaved)
        in_steps = reference.rotate(reference.rotate(k, places, rotation_of(rope)), np.full(34, 7), plain)
        np.testing.assert_allclose(in_steps.astype(float), at_once.astype(float), rtol=2.0**-7, atol=2.0**-6)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("rotary_dim, head_dim", [(20, 64), (24, 96), (8, 64), (28, 256)])
@pytest.mark.parametrize("pair", [(None, None), ("int8", "int4"), ("float8_e4m3", "float8_e4m3")], ids=str)
def test_halves_that_end_within_vectors_turn(rng, device, pair, rotary_dim, head_dim, interleaved):
    if head_dim == 256 and pair not in EVEN_PAIRS:
        pytest.skip("not built")
    rope = kvit.Rope(head_dim, rotary_dim=rotary_dim, interleaved=interleaved)
    case = Filled(rng, pair, rope, head_dim=head_dim, heads=5, device=device)
    case.expect(BY, FIRST)
    case.shift(case.integers(BY), first=case.integers(FIRST))
    case.assert_same()


def test_pages_are_shifted_as_sequences_of_their_own(rng, device):
    case = Filled(rng, lengths=[48], device=device)
    pages = np.asarray(case.table.pages[0])
    table = reference.Table(pages[[2, 0], None], [16, 16])
    case.expect([-16, 7], [0, 0], table)
    case.shift(case.integers([-16, 7]), table=make_table(table.pages, [16, 16], "dense", device))
    case.assert_same()


@pytest.mark.parametrize("by, rope", [(0, "own"), (-5, None)])
def test_keys_that_do_not_turn_keep_their_bits(rng, device, by, rope):
    # int4, whose codes would change if they were decoded and encoded.
    case = Filled(rng, ("int4", "int4"), device=device)
    case.shift(by, rope)
    case.assert_same()


def test_float8_that_moves_to_rows_of_another_scale_is_encoded_by_that(rng, device):
    # A scale a row: of each token and head. Where both rows have the same one the codes stay.
    pair = ("float8_e4m3", "float8_e4m3")
    case = Filled(rng, pair, device=device, lengths=[20], spare_pages=4, row_scales=True)
    table, on_device = case.other_pages(rng, [15])
    case.expect([-5], [4], table, case.table)
    case.shift(-5, first=4, source=case.page_table, table=on_device)
    case.assert_same()


def test_a_captured_shift_reads_lengths_and_numbers_when_it_is_launched(rng, device):
    case = Filled(rng, device=device)
    by, first = case.integers([0] * 4), case.integers([0] * 4)
    stream, operation = kvit.Stream(device), kvit.Shift(case.view, case.rope)
    with kvit.Graph.capture(stream) as graph:
        operation(case.view, case.page_table, by, first=first, stream=stream)
    for numbers, begin, lengths in (([-2, 0, 0, 9], [3, 0, 0, 40], [30, 3, 0, 50]), ([1] * 4, [0] * 4, LENGTHS)):
        for buffer, values in ((by, numbers), (first, begin), (case.page_table.lengths, lengths)):
            buffer.copy_from(np.array(values, np.int32))
        graph.launch()
        operation.check(stream)
        case.expect(numbers, begin, reference.Table(case.table.pages, lengths))
        case.assert_same()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda case: case.table.pages[3].__setitem__(2, 99), "page 2 of sequence 3 has id 99"),
        (lambda case: case.table.lengths.__setitem__(0, 500), "length 500"),
        (lambda case: case.table.lengths.__setitem__(0, -1), "length -1"),
    ],
    ids=["page", "long", "negative"],
)
def test_a_bad_table_is_reported_and_nothing_outside_it_turns(rng, device, spoil, message):
    case = Filled(rng, device=device)
    by = [-2] * 4
    spoil(case)
    is_page = "page" in message
    for sequence in (1, 2, 3) if not is_page else (0, 1, 2):
        one = reference.Table([case.table.pages[sequence]], [case.table.lengths[sequence]])
        case.expect(by[:1], [0], one)
    if is_page:  # tokens of the sequence's other pages turn
        pages = case.table.pages[3]
        for slot, length in ((0, 16), (1, 16), (3, 2)):
            case.expect(by[:1], [0], reference.Table([pages[slot : slot + 1]], [length]))
    table = make_table(case.table.pages, case.table.lengths, "dense", device)
    with pytest.raises(kvit.PageTableError, match=message):
        case.shift(-2, table=table)
    case.assert_same()


def test_a_source_that_is_too_short_is_reported(rng, device):
    case = Filled(rng, device=device, lengths=[20])
    table = make_table(case.table.pages, [20], "dense", device)
    with pytest.raises(kvit.PageTableError, match="length 20"):
        case.shift(-5, first=18, table=table, source=case.page_table)  # token 18 would be the source's 23rd
    case.assert_same()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"by": 2**31}, kvit.ShapeError, "by is 2147483648; positions are numbers of 32 bits"),
        ({"by": np.zeros(3, np.int32)}, kvit.ShapeError, r"by has shape \[3\]; it must be \[sequences = 4\]"),
        ({"by": np.zeros(4, np.int64)}, kvit.DtypeError, "by"),
        ({"by": 1, "first": np.zeros((4, 1), np.int32)}, kvit.ShapeError, "first has shape"),
        ({"by": 1, "table": 7}, TypeError, "table is a int; give a kvit.PageTable"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(rng, device, arguments, error, message):
    case = Filled(rng, device=device)
    given = {name: case.up(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        case.shift(**given)


def test_what_is_read_does_not_lie_in_the_pages(rng, device):
    case = Filled(rng, (None, None), device=device)
    inside = kvit.Tensor.from_pointer(case.buffers["k"].pointer, (4,), "int32", device, owner=case.buffers["k"])
    with pytest.raises(kvit.LayoutError, match="by lies in view.k"):
        case.shift(inside)
    with pytest.raises(kvit.ShapeError, match="source has 1 sequences and table 4"):
        case.shift(1, source=make_table([[0]], [3], "dense", device))
    with pytest.raises(kvit.ShapeError, match="turns rows of 128 channels"):
        kvit.Shift(case.view, kvit.Rope(128))
    with pytest.raises(TypeError, match="rope is a str"):
        kvit.Shift(case.view, "rope")
