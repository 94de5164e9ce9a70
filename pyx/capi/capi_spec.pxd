# The layers of a cache, as its options say them.
from kvit.capi cimport kvit_cache_options

# What kvit.PagedCache takes as `layers`: a number, or a list of kvit.LayerSpec. Raises ArgumentError, and what
# to_tensor and to_codec raise.
cdef object to_layers(const kvit_cache_options *options)

# "layers" or "pages". Raises ArgumentError.
cdef str to_storage(const kvit_cache_options *options)
