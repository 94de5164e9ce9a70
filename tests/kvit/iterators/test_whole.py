"""kvit/iterators/whole.py: models of tiles take whole numbers, and say so of anything else."""

import numpy as np
import pytest

from kvit.errors import KvitError, ShapeError
from kvit.iterators import BoxProbeSpec, ProbeSpec, RakedThreadMap, SmemLayout, Swizzle
from kvit.iterators.tensor_layout import TensorLayout

MODELS = [(RakedThreadMap, (64, 64, 8, 4, 8, 1)), (SmemLayout, (64, 64, 8, 64)), (Swizzle, (3, 3, 3)),
          (TensorLayout, (128, 64))]  # fmt: skip
SPECS = [(ProbeSpec, ("sm80", "f16", 64, 64, 2, "paged")), (BoxProbeSpec, ("f16", 64, 64, 2))]
STRANGE = [None, 8.0, "8", np.float32(8), np.array([8, 8]), [8], True, object]


@pytest.mark.parametrize("given", STRANGE, ids=str)
@pytest.mark.parametrize(("model", "numbers"), MODELS, ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_no_whole_number_is_refused_by_its_name(model, numbers, given):
    model(*map(np.int64, numbers))
    for i, name in enumerate(list(model.__dataclass_fields__)[: len(numbers)]):
        if name == "warp_thread_c" and given is None:
            continue  # which asks for the most that fits
        with pytest.raises(ShapeError, match=f"{name} of {model.__name__} is .*; it must be a whole number"):
            model(*numbers[:i], given, *numbers[i + 1 :])


@pytest.mark.parametrize("given", STRANGE, ids=str)
@pytest.mark.parametrize(("spec", "axes"), SPECS, ids=lambda x: getattr(x, "__name__", ""))
def test_no_point_of_the_axes_is_anything_but_words_and_numbers(spec, axes, given):
    spec(*axes)
    for i in range(len(axes)):
        with pytest.raises(KvitError, match="it must be"):
            spec(*axes[:i], given, *axes[i + 1 :])


def test_a_swizzle_is_a_swizzle():
    with pytest.raises(TypeError, match="swizzle is a int; give a Swizzle"):
        SmemLayout(64, 64, 8, 64, 3)
