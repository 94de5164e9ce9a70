"""The one gather: kvit.Gather and PagedCache.gather, in either order of axes and into whose memory they are given."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, make_case, new_cache, new_tokens, poisoned, to_device


@pytest.mark.parametrize("pair", [(None, None), ("int8", "int4")], ids=str)
def test_sequences_come_end_to_end_in_either_layout_and_into_given_memory(rng, device, pair):
    cache = new_cache(device, page_size=3, k=pair[0], v=pair[1])
    seqs = [cache.sequence() for _ in range(3)]
    cache.append(seqs, *(to_device(x, device) for x in new_tokens(rng, 11)), new_tokens=[7, 0, 4])
    k, v, indptr = cache.gather(seqs)
    np.testing.assert_array_equal(indptr.numpy(), [0, 7, 7, 11])
    out = tuple(to_device(poisoned((2, 11, 64), BFLOAT16), device) for _ in range(2))
    result = cache.gather(seqs, out=out, layout="HND")
    assert result[0] is out[0] and result[1] is out[1]
    np.testing.assert_array_equal(result[2].numpy(), [0, 7, 7, 11])
    fresh = cache.gather(seqs, layout="HND")
    for rows, given_rows, new in zip((k, v), out, fresh, strict=False):
        np.testing.assert_array_equal(given_rows.numpy(), rows.numpy().swapaxes(0, 1))
        np.testing.assert_array_equal(new.numpy(), given_rows.numpy())
    cache.check()


def test_a_cache_gathers_into_the_callers_memory_a_row_for_each_token(rng, device):
    cache = new_cache(device)
    seqs = [cache.sequence(), cache.sequence()]
    rows = new_tokens(rng, 20)
    cache.append(seqs, *(to_device(x, device) for x in rows), new_tokens=[17, 3])
    into = [kvit.Buffer.empty(x.shape, "bfloat16", device) for x in rows]
    k, v, indptr = cache.gather(seqs, out=into)
    assert k is into[0] and v is into[1] and indptr.numpy().tolist() == [0, 17, 20]
    for found, given in zip(into, rows, strict=True):
        np.testing.assert_array_equal(found.numpy(), given)
    with pytest.raises(kvit.ShapeError, match=r"k has shape \[19, 2, 64\]; it must be \[tokens = 20"):
        cache.gather(seqs, out=(into[0][:19], into[1][:19]))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_rows_that_no_sequence_has_are_left_as_they_are(rng, device, layout):
    case = make_case(rng, [5, 9], device=device)
    shape = (8, 2, 64) if layout == "NHD" else (2, 8, 64)
    out = [to_device(poisoned(shape, BFLOAT16), device) for _ in range(2)]
    indptr = to_device(np.array([2, 5, 6], np.int32), device)  # two rows before the first, two behind the last
    gather = kvit.Gather(case.view)
    gather(case.view, case.page_table, query_indptr=indptr, out=out, layout=layout)
    gather.check()
    k, v, _ = reference.gather(case.cache, case.table)
    for found, every in zip(out, (k, v), strict=True):
        rows = found.numpy() if layout == "NHD" else found.numpy().swapaxes(0, 1)
        np.testing.assert_array_equal(rows[2:6], every[[2, 3, 4, 13]])  # the last three of 5, the last of 9
        assert (rows[[0, 1, 6, 7]].view(np.uint16) == 0xFFFF).all()


def test_memory_that_does_not_fit_the_layout_is_refused(rng):
    cache = new_cache("host")
    seq = cache.sequence()
    seq.append(*new_tokens(rng, 5))
    gather, table = kvit.Gather(cache.view), cache.table([seq])
    out = tuple(poisoned((5, 2, 64), BFLOAT16) for _ in range(2))
    with pytest.raises(kvit.ShapeError, match=r"k has shape \[5, 2, 64\]; it must be \[kv_heads = 2, tokens = 5"):
        cache.gather([seq], out=out, layout="HND")
    with pytest.raises(kvit.ShapeError, match="k has shape"):
        gather(cache.view, table, out=out, layout="HND")
    for call in (cache.gather, lambda seqs, **options: gather(cache.view, table, **options)):
        with pytest.raises(kvit.LayoutError, match="layout is 'DHN'"):
            call([seq], out=out, layout="DHN")
        with pytest.raises(TypeError, match=r"out is 1 arrays?; give \(k, v\)"):
            call([seq], out=out[:1])
        with pytest.raises(TypeError, match=r"out is a ndarray; give \(k, v\)"):
            call([seq], out=np.stack(out))
    for rows in out:
        assert (rows.view(np.uint16) == 0xFFFF).all()


def test_memory_that_is_read_only_is_refused_in_either_layout(rng):
    cache = new_cache("host")
    seq = cache.sequence()
    seq.append(*new_tokens(rng, 5))
    for layout, shape in (("NHD", (5, 2, 64)), ("HND", (2, 5, 64))):
        out = [poisoned(shape, BFLOAT16) for _ in range(2)]
        out[1].flags.writeable = False
        with pytest.raises(kvit.LayoutError, match="v is read-only"):
            kvit.Gather(cache.view)(cache.view, cache.table([seq]), out=out, layout=layout)
        with pytest.raises(kvit.LayoutError, match="v is read-only"):
            cache.gather([seq], out=out, layout=layout)
        assert (out[0].view(np.uint16) == 0xFFFF).all()
