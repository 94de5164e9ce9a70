# The tensor maps of K and V of a cache, for kernels that copy by them.
from kvit._native.context cimport Device


cdef extern from "abi/params.h":
    enum:
        KVIT_LEAST_BOX_TOKENS

cdef enum:
    NUM_BOXES = 4                      # of 8, 16, 32 and 64 tokens


# K's map, then V's, of boxes of KVIT_LEAST_BOX_TOKENS << i tokens.
cdef struct TensorMaps:
    int most_tokens                    # of a box of this cache; 0: no map can describe it
    unsigned int made                  # bit i: those of boxes of KVIT_LEAST_BOX_TOKENS << i tokens are there
    unsigned char[NUM_BOXES][2][128] maps


# What KvitCache says of K or of V.
cdef struct MappedPool:
    void *base
    long long page_stride
    long long token_stride
    long long head_stride
    int row_bytes


# Tokens of the largest box that lies in one page of both pools; 0 where a map cannot describe them.
cdef int most_box_tokens(const MappedPool *k, const MappedPool *v, int page_size) noexcept nogil

# Makes the maps of boxes of `tokens`, a power of two up to maps.most_tokens. Raises DriverError.
cdef int make_tensor_maps(TensorMaps *maps, int tokens, Device home, const MappedPool *k, const MappedPool *v,
                          int num_pages, int page_size, int num_heads) except -1

# Copies the maps of boxes of at most `tokens` to k and v, 128 bytes each. Returns the tokens of a box; 0: not made yet.
cdef int copy_tensor_maps(const TensorMaps *maps, int tokens, unsigned char *k, unsigned char *v) noexcept nogil
