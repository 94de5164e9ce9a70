# Arguments that calls on caches, their layers and their steps have in common.
from libc.stdint cimport int32_t, int64_t

from kvit._native.checks cimport DeviceId
from kvit._native.stream cimport Stream
from kvit.capi cimport kvit_attention_options, kvit_stream, kvit_tensor

# Where the memory of a kvit.PagedCache is.
cdef DeviceId device_for(object cache)

# The Stream of a handle, of the cache's device. Raises DeviceError.
cdef Stream stream_for(object cache, kvit_stream stream)

# Numbers of tokens, one for each sequence; None for NULL.
cdef object to_counts(const int64_t *new_tokens, int64_t count)

# The same where sequences grow: one token of each for NULL.
cdef object to_growth(const int64_t *new_tokens, int64_t count)

# (left, right) as kvit.LayerSpec and kvit.attention take a window, 0 for all keys; None for (0, 0). Raises
# ArgumentError.
cdef object to_window(int32_t left, int32_t right, str name)

# The other way.
cdef (int32_t, int32_t) from_window(object window)

# Raises ShapeError unless the cache has one layer, which `call` is about; `instead` names the call for several.
cdef int require_one_layer(object cache, str call, str instead) except -1

# Whether rows of V are the first channels of the rows of K in a layer. Raises ShapeError.
cdef bint shares_kv(object cache, int32_t layer) except -1

# Keyword arguments of kvit.attention; none for NULL. Raises ArgumentError, and what to_tensor raises.
cdef dict to_attention(const kvit_attention_options *options)

# kvit.attention of a cache of one layer, or of a layer, to `members` of it: sequences, a step or a batch. Under the
# lock of the cache.
cdef int attend(object layer, object members, object counts, const kvit_tensor *q, const kvit_tensor *out,
                const kvit_tensor *lse, object stream, dict wishes) except -1
