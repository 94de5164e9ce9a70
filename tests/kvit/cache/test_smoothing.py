"""PagedCache with a KeySmoothing: whatever is done to it, keys come back as they were, to what codes lose."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import rotation_of
from support.caches import BFLOAT16, new_tokens, to_device
from support.smoothings import referred, smoothing_of

ROPE = kvit.Rope(64, rotary_dim=32)
HEADS, DIM = 2, 64


def kept(k, smoothing):
    """Keys as bfloat16 keeps them: one rounding on the way in, one on the way out."""
    last = referred(smoothing)
    return last.undone(last.of_keys(k.astype(np.float32)).astype(BFLOAT16))


def bits(x):
    return (x if isinstance(x, np.ndarray) else x.numpy()).view(np.uint16)


def grown(rng, device, *, lengths, pages=40, **options):
    cache = kvit.PagedCache(pages, 4, HEADS, DIM, device=device, **options)
    sequences, given = [], []
    for length in lengths:
        k, v = new_tokens(rng, length)
        sequences.append(cache.sequence())
        sequences[-1].append(to_device(k, device), to_device(v, device))
        given.append((k, v))
    return cache, sequences, given


def test_sequences_grow_fork_and_move_as_without_one(rng, device):
    smoothing = smoothing_of(rng, HEADS, DIM)
    cache, (a, b), given = grown(rng, device, lengths=[9, 6], smoothing=smoothing)
    fork = a.fork()
    k, v = new_tokens(rng, 3)
    fork.append(to_device(k, device), to_device(v, device))
    b.truncate(5)
    cache.defragment(order="sequences")
    swapped = cache.swap_out(b)
    b = cache.swap_in(swapped)
    wanted = [given[0][0], np.concatenate([given[0][0], k]), given[1][0][:5]]
    found, _, _ = cache.gather([a, fork, b])
    cache.check()
    np.testing.assert_array_equal(bits(found), bits(np.concatenate([kept(x, smoothing) for x in wanted])))


def test_queries_come_back_from_append_ready_for_attention(rng, device):
    smoothing = smoothing_of(rng, HEADS, DIM)
    cache, [seq], [(k, v)] = grown(rng, device, lengths=[30], smoothing=smoothing)
    k_new, v_new = new_tokens(rng, 1)
    q = rng.standard_normal((1, 6, DIM)).astype(BFLOAT16)
    on_device = to_device(q, device)
    cache.append([seq], to_device(k_new, device), to_device(v_new, device), q=on_device)
    np.testing.assert_array_equal(
        bits(on_device), bits(reference.biased(q, None, None, referred(smoothing).of_queries))
    )
    out = kvit.attention(on_device, cache, [seq]).numpy().astype(np.float64)
    want = reference.attention(q, np.concatenate([k, k_new]), np.concatenate([v, v_new])).out
    # bfloat16 keeps 8 bits of a score whose terms have magnitudes of 3 and 10: an error in proportion to the output.
    assert np.abs(out - want).max() < 0.15 * np.abs(want).max()


@pytest.mark.parametrize("storage", ["layers", "pages"])
def test_each_layer_has_numbers_of_its_own(rng, device, storage):
    smoothings = [smoothing_of(rng, HEADS, DIM) for _ in range(3)]
    layers = [kvit.LayerSpec(smoothing=x) for x in smoothings] + [kvit.LayerSpec()]
    cache = kvit.PagedCache(10, 4, HEADS, DIM, layers=layers, storage=storage, device=device)
    assert len(cache.groups) == 2  # layers whose numbers alone differ lie side by side and share operations
    seq = cache.sequence()
    rows = [new_tokens(rng, 7) for _ in layers]
    with cache.step([seq], 7) as step:
        for layer, (k, v) in zip(cache.layers, rows, strict=True):
            layer.append(step, to_device(k, device), to_device(v, device))
    for layer, (k, _), smoothing in zip(cache.layers, rows, [*smoothings, None], strict=True):
        want = k if smoothing is None else kept(k, smoothing)
        np.testing.assert_array_equal(bits(layer.gather([seq])[0]), bits(want))


def test_shift_turns_keys_of_every_layer_as_they_were(rng, device):
    smoothings = [smoothing_of(rng, HEADS, DIM) for _ in range(2)]
    layers = [kvit.LayerSpec(smoothing=x) for x in smoothings]
    cache = kvit.PagedCache(10, 4, HEADS, DIM, layers=layers, rope=ROPE, device=device)
    seq, rows = cache.sequence(), [new_tokens(rng, 11) for _ in layers]
    with cache.step([seq], 11) as step:
        for layer, (k, v) in zip(cache.layers, rows, strict=True):
            layer.append(step, to_device(k, device), to_device(v, device))
    cache.shift([seq], 5, keep=2)
    cache.check()
    rotation = rotation_of(ROPE)
    for layer, (k, _), smoothing in zip(cache.layers, rows, smoothings, strict=True):
        last = referred(smoothing)
        stored = reference.rotate(k, np.arange(11), rotation, last=last.of_keys)
        behind = reference.rotate(last.undone(stored[7:]), np.full(4, -5), rotation, last=last.of_keys)
        want = last.undone(np.concatenate([stored[:2], behind]))
        np.testing.assert_array_equal(bits(layer.gather([seq])[0]), bits(want))


def test_rows_that_have_turned_already_are_smoothed_too(rng, device):
    smoothing = smoothing_of(rng, HEADS, DIM)
    cache = kvit.PagedCache(10, 4, HEADS, DIM, rope=ROPE, smoothing=smoothing, device=device)
    seq, (k, v) = cache.sequence(), new_tokens(rng, 7)
    cache.append([seq], to_device(k, device), to_device(v, device), rotate=False)
    np.testing.assert_array_equal(bits(cache.gather([seq])[0]), bits(kept(k, smoothing)))


def test_requantise_keeps_the_smoothing(rng, device):
    smoothing = smoothing_of(rng, HEADS, DIM)
    cache, [seq], [(k, v)] = grown(rng, device, lengths=[9], smoothing=smoothing)
    cache.requantise(k="int8", v="int8")
    found = cache.gather([seq])[0].numpy().astype(np.float32)
    # A step of 8 bits of what is stored, times the width of its channel, and roundings to bfloat16.
    stored = referred(smoothing).of_keys(k.astype(np.float32))
    step = (stored.max(-1) - stored.min(-1)) / 255
    bound = (step[..., None] * 1.5 + np.abs(stored) * 2**-7) * smoothing.width + np.abs(found) * 2**-7
    assert (np.abs(found - k.astype(np.float32)) <= bound).all()
    k, v = new_tokens(rng, 2)
    seq.append(to_device(k, device), to_device(v, device))
    again = cache.gather([seq])[0].numpy()[9:].astype(np.float32)
    assert np.abs(again - k.astype(np.float32)).max() < 1


def test_refusals(rng, device):
    smoothing = smoothing_of(rng, HEADS, DIM)
    with pytest.raises(kvit.ShapeError, match="the cache has 3 of 64"):
        kvit.PagedCache(4, 16, 3, DIM, device=device, smoothing=smoothing)
    with pytest.raises(kvit.DtypeError, match="K and V share rows"):
        kvit.PagedCache(4, 16, 1, 576, v_dim=512, shares_kv=True, device=device, smoothing=smoothing_of(rng, 1, 576))
    with pytest.raises(TypeError, match="kvit.KeySmoothing"):
        kvit.PagedCache(4, 16, HEADS, DIM, device=device, smoothing=np.ones((HEADS, DIM)))
    cache, [seq], _ = grown(rng, device, lengths=[4], smoothing=smoothing)
    q = to_device(np.zeros((1, 4, DIM), BFLOAT16), device)
    with pytest.raises(kvit.DtypeError, match="softcap want the scores of whole keys"):
        kvit.attention(q, cache, [seq], softcap=20.0)
