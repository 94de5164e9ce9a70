"""What a token weighs: scores and values that grow along a sequence, and any scale of the softmax."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

# Several steps of every warp, and of several CTAs.
LENGTH = 1500
# As keys and values are stored, and the type that weights are rounded to: f16 but for 16-bit values.
STORED = [((None, None), FLOAT16), (("int8", "int4"), BFLOAT16), (("float8_e4m3", "float8_e4m3"), BFLOAT16)]


def filled(pair, dtype, k, v, device, rng):
    """A cache that holds k and v, [tokens, 2, 64]."""
    case = Quantised(pair, [len(k)], dtype=dtype, device=device, rng=rng)
    k, v = k.astype(dtype), v.astype(dtype)
    reference.append(case.cache, case.table, k, v, [len(k)])
    kvit.Append(case.view)(to_device(k, device), to_device(v, device), case.view, case.page_table)
    return case


def assert_attention(case, q, **options):
    count = len(q)
    lse = to_device(np.zeros(q.shape[:2], np.float32), case.device)
    operation = kvit.Attention(case.view, q.shape[1], tokens_per_sequence=count, **options)
    out = operation(to_device(q, case.device), case.view, case.page_table, lse=lse)
    operation.check()
    state = reference.paged_attention(q, case.cache, case.table, [count], **options)
    assert_within(out.numpy(), state.out, case.bound(q, [count], **options))
    assert_within(lse.numpy(), state.lse, tolerances.SCORE_QUANTISED)


@pytest.mark.parametrize(("pair", "dtype"), STORED, ids=str)
@pytest.mark.parametrize("rise", [90, -90])
def test_scores_may_rise_beyond_every_weight_so_far(rng, device, pair, dtype, rise):
    # By 2^130 in all, by 2^11 and more from a step of a warp to its next: no base that the first steps find serves the
    # last, and f16 holds 2^16. Falling, all but the first tokens vanish.
    direction = rng.choice([-1.0, 1.0], (2, 64))
    along = np.linspace(max(0, -rise), max(0, rise), LENGTH) / 8  # q . k = 64 of it, times 1 / 8
    k = along[:, None, None] * direction
    v = rng.standard_normal((LENGTH, 2, 64))
    case = filled(pair, dtype, k, v, device, rng)
    q = np.repeat(direction, 4, axis=0)[None].astype(dtype)
    assert_attention(case, q)


@pytest.mark.parametrize("pair", [("int8", "int4"), (None, "int8")], ids=str)
@pytest.mark.parametrize("rise", [40, -40])
def test_values_may_grow_beyond_every_weight_so_far(rng, device, pair, rise):
    # A value's scale is part of its weight in the product: by 2^40 from the first token to the last.
    k, v = rng.standard_normal((2, LENGTH, 2, 64))
    v *= np.exp2(np.linspace(0, rise, LENGTH))[:, None, None]
    case = filled(pair, BFLOAT16, k, v, device, rng)
    assert_attention(case, rng.standard_normal((1, 8, 64)).astype(BFLOAT16))


@pytest.mark.parametrize(("pair", "dtype"), STORED, ids=str)
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_a_scale_of_zero_or_less_hides_what_is_hidden(rng, device, pair, dtype, scale):
    # Hidden scores are infinite: times 0 they would be no numbers, and times less than 0 the largest of all.
    k, v = rng.standard_normal((2, 200, 2, 64))
    case = filled(pair, dtype, k, v, device, rng)
    assert_attention(case, rng.standard_normal((5, 8, 64)).astype(dtype), scale=scale)


def test_constant_values_have_no_scale_and_count_all_the_same(rng, device):
    k = rng.standard_normal((200, 2, 64))
    v = np.repeat(rng.standard_normal((200, 2, 1)), 64, axis=2)  # scale 0, all in the zero
    case = filled(("int8", "int4"), BFLOAT16, k, v, device, rng)
    assert_attention(case, rng.standard_normal((1, 8, 64)).astype(BFLOAT16))
