"""Arguments that calls on caches, their layers and their steps have in common."""
import kvit

from kvit._native.capi_option cimport check_size, is_causal
from kvit._native.capi_tensor cimport to_stream, to_tensor
from kvit._native.checks cimport device_id_of
from kvit._native.whole_numbers cimport tuple_of

from kvit._native.capi_error import ArgumentError
from kvit.errors import ShapeError


cdef DeviceId device_for(object cache):
    return device_id_of(cache.places[0].view.k)


cdef Stream stream_for(object cache, kvit_stream stream):
    return to_stream(stream, device_for(cache))


cdef object to_counts(const int64_t *new_tokens, int64_t count):
    return None if new_tokens == NULL else tuple_of(new_tokens, count)


cdef object to_growth(const int64_t *new_tokens, int64_t count):
    return 1 if new_tokens == NULL else tuple_of(new_tokens, count)


cdef object to_window(int32_t left, int32_t right, str name):
    for side, keys in (("left", left), ("right", right)):
        if keys < 0:
            raise ArgumentError(f"{name}window_{side} is {keys}; give how many keys a query sees there, or 0 for all")
    return (left or None, right or None) if left or right else None


cdef (int32_t, int32_t) from_window(object window):
    if window is None:
        return 0, 0
    left, right = window if isinstance(window, tuple) else (window, None)
    return left or 0, right or 0


cdef int require_one_layer(object cache, str call, str instead) except -1:
    if len(cache.places) != 1:
        raise ShapeError(f"the cache has {len(cache.places)} layers, and {call} is for caches of one; call {instead}")
    return 0


cdef bint shares_kv(object cache, int32_t layer) except -1:
    return cache.layer(layer).shares_kv


cdef dict to_attention(const kvit_attention_options *options):
    if options == NULL:
        return {}
    check_size(options, sizeof(kvit_attention_options), "kvit_attention_options")
    return {
        "causal": is_causal(options.mask),
        "scale": options.scale or None,
        "window": to_window(options.window_left, options.window_right, ""),
        "chunk": options.chunk or None,
        "softcap": options.softcap or None,
        "sinks": to_tensor(options.sinks, "sinks", True),
        "alibi": to_tensor(options.alibi, "alibi", True),
        "temperature": to_tensor(options.temperature, "temperature", True),
        "spans": to_tensor(options.spans, "spans", True),
        "tree": to_tensor(options.tree, "tree", True),
    }


cdef int attend(object layer, object members, object counts, const kvit_tensor *q, const kvit_tensor *out,
                const kvit_tensor *lse, object stream, dict wishes) except -1:
    kvit.attention(
        to_tensor(q, "q"), layer, members, counts, out=to_tensor(out, "out"), lse=to_tensor(lse, "lse", True),
        stream=stream, **wishes,
    )
    return 0
