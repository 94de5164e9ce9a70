"""Append with QK-norm, and with positions on three axes: the reference's bits, in every codec that is built for it."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import COUNTS, Setup, rotation_of
from support.caches import BFLOAT16, FLOAT16

PAIRS = [
    (None, None),
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("int8", "int4"),
    (None, "int8"),
]
EVEN_PAIRS = PAIRS[:4]  # those that are built for head_dim 256
ROPES = {
    "none": lambda head_dim: None,
    "halves": lambda head_dim: kvit.Rope(head_dim),
    "partial": lambda head_dim: kvit.Rope(head_dim, rotary_dim=48),
    "interleaved": lambda head_dim: kvit.Rope(head_dim, rotary_dim=32, interleaved=True),
}
AXES = {
    "one after another": {"mrope_section": [8, 10, 14]},
    "in turns": {"mrope_section": [12, 10, 10], "mrope_interleaved": True},
}


def weights(case):
    """Weights as models have them, around 1, one of them zero and one negative."""
    found = (1 + case.rng.standard_normal(case.head_dim) / 4).astype(case.dtype)
    found[3], found[17] = 0, -0.5
    return found


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_keys_are_normalised_before_they_turn(rng, device, pair, head_dim, rope):
    # Rows with outliers, constant rows and rows of zeros, whose mean square is 0.
    if head_dim == 256 and pair not in EVEN_PAIRS:
        pytest.skip("not built")
    case = Setup(rng, pair, head_dim=head_dim, device=device)
    rope = ROPES[rope](head_dim)
    (k, v), weight = case.rows(), weights(case)
    norm = reference.RowNorm(weight, 1e-5)
    rotation = None if rope is None else rotation_of(rope)
    reference.append(case.cache, case.table, k, v, COUNTS, k_norm=norm, rotation=rotation)
    case.append(k, v, rope=rope, made_with={"k_norm": weight, "norm_eps": 1e-5})
    case.assert_same()


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [4, 8, 12, 20, 24, 28])
@pytest.mark.parametrize("head_dim, pair, with_norm", [
    (64, (None, None), False), (80, (None, None), True), (96, ("int8", "int4"), False), (256, (None, None), False),
    (64, ("float8_e4m3", "float8_e4m3"), True), (512, (None, None), False),
], ids=str)  # fmt: skip
def test_halves_that_end_within_vectors_turn(rng, device, head_dim, pair, with_norm, rotary_dim, interleaved):
    # 20 of 80 and 24 of 96 are StableLM's and GPT-NeoX's. Keys and queries, of more heads than a warp holds at a time.
    case = Setup(rng, pair, head_dim=head_dim, heads=9, device=device)
    rope = kvit.Rope(head_dim, rotary_dim=rotary_dim, interleaved=interleaved)
    (k, v), q, bias = case.rows(), case.random(sum(COUNTS), 18, head_dim), case.random(9, head_dim)
    weight = weights(case) if with_norm else None
    norm = None if weight is None else reference.RowNorm(weight)
    rotation = rotation_of(rope)
    reference.append(case.cache, case.table, k, v, COUNTS, k_norm=norm, k_bias=bias, rotation=rotation)
    made_with = {} if weight is None else {"k_norm": weight}
    q_out = case.append(k, v, rope=rope, made_with=made_with, k_bias=bias, q=q, q_out=np.zeros_like(q))["q_out"]
    case.assert_same()
    positions = reference.token_positions(case.table, COUNTS)
    want = reference.rotate(q, positions, rotation)
    np.testing.assert_array_equal(q_out.numpy().view(np.uint16), want.view(np.uint16))


def test_such_halves_turn_by_the_positions_of_their_axis(rng, device):
    case = Setup(rng, (None, None), head_dim=80, device=device)
    rope = kvit.Rope(80, rotary_dim=20, scaling={"mrope_section": [4, 3, 3]})
    k, v = case.rows()
    positions = rng.integers(0, 5000, (3, sum(COUNTS))).astype(np.int32)
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope), positions=positions)
    case.append(k, v, rope=rope, positions=positions)
    case.assert_same()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("with_rope", [False, True])
def test_queries_are_normalised_by_weights_of_their_own(rng, device, with_rope, in_place, dtype):
    case = Setup(rng, dtype=dtype, head_dim=128, heads=5, device=device)
    rope = kvit.Rope(128) if with_rope else None
    (k, v), q = case.rows(), case.random(sum(COUNTS), 19, 128)
    names = ("k_norm", "q_norm")
    norms = {name: reference.RowNorm(weights(case), 1e-6, 1.0) for name in names}
    biases = {"k_bias": case.random(5, 128), "q_bias": case.random(19, 128)}
    rotation = rotation_of(rope) if with_rope else None
    reference.append(case.cache, case.table, k, v, COUNTS, k_norm=norms["k_norm"], rotation=rotation,
                     k_bias=biases["k_bias"])  # fmt: skip
    if with_rope:
        positions = reference.token_positions(case.table, COUNTS)
        expected = reference.rotate(q, positions, rotation, biases["q_bias"], norms["q_norm"])
    else:
        expected = reference.biased(q, biases["q_bias"], norms["q_norm"])
    queries = case.up(q)
    out = queries if in_place else case.up(np.zeros_like(q))
    made_with = {name: norms[name].weight for name in names} | {"norm_eps": 1e-6, "norm_offset": 1.0}
    case.append(k, v, rope=rope, q=queries, q_out=None if in_place else out, made_with=made_with, **biases)
    case.assert_same()
    np.testing.assert_array_equal(out.numpy().view(np.uint16), expected.view(np.uint16))


def test_weights_of_one_side_leave_the_other_alone(rng, device):
    case = Setup(rng, device=device)
    rope, (k, v), q, weight = kvit.Rope(64), case.rows(), case.random(sum(COUNTS), 6, 64), weights(case)
    positions = reference.token_positions(case.table, COUNTS)
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope))
    queries = case.up(q)
    case.append(k, v, rope=rope, q=queries, made_with={"q_norm": weight})
    case.assert_same()
    expected = reference.rotate(q, positions, rotation_of(rope), norm=reference.RowNorm(weight))
    np.testing.assert_array_equal(queries.numpy().view(np.uint16), expected.view(np.uint16))


def test_every_call_of_an_operation_normalises_the_plainest_too(rng, device):
    # A call without options takes a way of its own, which knows of no weights.
    case = Setup(rng, (None, None), device=device)
    (k, v), weight = case.rows(), weights(case)
    reference.append(case.cache, case.table, k, v, COUNTS, k_norm=reference.RowNorm(weight))
    operation = kvit.Append(case.view, k_norm=case.up(weight))
    indptr = case.up(np.cumsum([0, *COUNTS]).astype(np.int32))
    for _ in range(2):
        operation(case.up(k), case.up(v), case.view, case.page_table, query_indptr=indptr)
    case.assert_same()


def test_rows_too_large_to_be_squared_become_zero_as_in_float32(rng, device):
    case = Setup(rng, (None, None), device=device)
    (k, v), weight = case.rows(), weights(case)
    k[0], k[1, :, 5], k[4, :, 6] = 3e38, np.inf, np.nan
    reference.append(case.cache, case.table, k, v, COUNTS, k_norm=reference.RowNorm(weight))
    case.append(k, v, made_with={"k_norm": weight})
    found, wanted = (x.astype(np.float32) for x in (case.buffers["k"].numpy(), case.cache.k))
    np.testing.assert_array_equal(found, wanted)  # NaN equals NaN, whatever its bits


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("pair", [(None, None), ("int8", "int4"), ("float8_e4m3", "float8_e4m3")], ids=str)
def test_pairs_turn_by_the_positions_of_their_axis(rng, device, pair, axes, interleaved):
    case = Setup(rng, pair, head_dim=128, device=device)
    rope = kvit.Rope(128, rotary_dim=64, interleaved=interleaved, scaling=AXES[axes])
    (k, v), q = case.rows(), case.random(sum(COUNTS), 6, 128)
    positions = rng.integers(0, 1 << 20, (3, len(k))).astype(np.int32)
    positions[:, :3] = [[0, 1, 2**31 - 1], [1_000_000, -7, 3], [5, 5, 5]]
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope), positions=positions)
    queries = case.up(q)
    case.append(k, v, rope=rope, positions=positions, q=queries)
    case.assert_same()
    expected = reference.rotate(q, positions, rotation_of(rope))
    np.testing.assert_array_equal(queries.numpy().view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("given", [False, True])
def test_text_turns_by_one_position_as_if_there_were_one_axis(rng, device, given):
    case = Setup(rng, device=device)
    rope = kvit.Rope(64, scaling={"mrope_section": [8, 12, 12]})
    k, v = case.rows()
    options = {"positions": rng.integers(0, 5000, len(k)).astype(np.int32)} if given else {}
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(kvit.Rope(64)), **options)
    case.append(k, v, rope=rope, **options)
    case.assert_same()


@pytest.mark.parametrize(
    "made_with, error, message",
    [
        ({"k_norm": np.ones(32, BFLOAT16)}, kvit.ShapeError, r"k_norm has shape \[32\]; it must be \[head_dim = 64\]"),
        ({"q_norm": np.ones((3, 64), BFLOAT16)}, kvit.ShapeError, "q_norm has shape"),
        ({"k_norm": np.ones(64, np.float32)}, kvit.DtypeError, "k_norm"),
        ({"k_norm": np.ones(64, BFLOAT16), "norm_eps": 0.0}, ValueError, "norm_eps is 0.0; it must be greater than 0"),
        ({"k_norm": np.ones(64, BFLOAT16), "norm_eps": float("nan")}, ValueError, "norm_eps is nan"),
        ({"q_norm": np.ones(64, BFLOAT16), "norm_offset": float("inf")}, ValueError, "norm_offset is inf"),
    ],
)
def test_weights_and_numbers_that_do_not_fit_are_refused(rng, device, made_with, error, message):
    case = Setup(rng, device=device)
    with pytest.raises(error, match=message):
        case.append(*case.rows(), made_with=made_with)


def test_positions_and_queries_need_what_they_are_for(rng, device):
    case = Setup(rng, device=device)
    k, v = case.rows()
    three = np.zeros((3, len(k)), np.int32)
    with pytest.raises(kvit.ShapeError, match="positions has shape"):
        case.append(k, v, rope=kvit.Rope(64), positions=three)
    with pytest.raises(kvit.ShapeError, match=r"must be \[axes = 3"):
        case.append(k, v, rope=kvit.Rope(64, scaling={"mrope_section": [8, 12, 12]}), positions=three[:2])
    with pytest.raises(kvit.ShapeError, match="give Append a rope"):
        case.append(k, v, made_with={"k_norm": weights(case)}, q=case.random(len(k), 6, 64))
    with pytest.raises(kvit.KernelMissing, match="extended"):
        odd = Setup(rng, ("float8_e5m2", "float8_e5m2"), device=device)
        odd.append(*odd.rows(), made_with={"k_norm": weights(odd)})


def test_weights_do_not_lie_in_the_pages_that_are_written(rng, device):
    case = Setup(rng, (None, None), device=device)
    k, v = case.rows()
    inside = kvit.Tensor.from_pointer(case.buffers["k"].pointer, (64,), "bfloat16", device, owner=case.buffers["k"])
    with pytest.raises(kvit.LayoutError, match="k_norm lies in view.k"):
        case.append(k, v, made_with={"k_norm": inside})
