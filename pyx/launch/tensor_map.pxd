# The tensor maps of K and V of a cache, for kernels that copy by them.
from kvit._native.context cimport Device


cdef extern from "abi/params.h":
    enum:
        KVIT_LEAST_BOX_TOKENS

cdef enum:
    NUM_BOXES = 5                      # of 8, 16, 32, 64 and 128 tokens
    MOST_BOX = KVIT_LEAST_BOX_TOKENS << (NUM_BOXES - 1)


# What a kernel asks for.
cdef struct Boxes:
    int tokens                         # most of a box, a power of two; 0: the kernel copies otherwise
    bint is_packed                     # tokens of fewer than 128 bytes come several to a row of 128
    bint shares_kv                     # rows of V are the first bytes of the rows of K


# K's map, then V's, of boxes of KVIT_LEAST_BOX_TOKENS << i tokens; those with packed rows from NUM_BOXES on.
cdef struct TensorMaps:
    int most_tokens                    # of a box of this cache; 0: no map can describe it
    bint may_be_packed
    bint shares_kv
    unsigned int made                  # bit i: maps[i] are there
    unsigned char[2 * NUM_BOXES][2][128] maps


# What KvitCache says of K or of V.
cdef struct MappedPool:
    void *base
    long long page_stride
    long long token_stride
    long long head_stride
    int row_bytes


# Writes which boxes lie in one page of both pools, and can be described. k_pairs, v_pairs: the parameters of integers,
# which kernels with packed rows copy by twos; null where there are none.
cdef void describe_maps(TensorMaps *maps, const MappedPool *k, const MappedPool *v, const MappedPool *k_pairs,
                        const MappedPool *v_pairs, int page_size) noexcept nogil

# Whether a cache can be copied by such boxes, or smaller ones.
cdef bint can_copy(const TensorMaps *maps, Boxes boxes) noexcept nogil

# Makes the maps of such boxes, or of the largest there can be. Raises DriverError.
cdef int make_tensor_maps(TensorMaps *maps, Boxes boxes, Device dev, const MappedPool *k, const MappedPool *v,
                          int num_pages, int page_size, int num_heads) except -1

# Copies the maps of such boxes, or of the largest there can be, to k and v, 128 bytes each. Returns the tokens of a
# box; 0: not made yet.
cdef int copy_tensor_maps(const TensorMaps *maps, Boxes boxes, unsigned char *k, unsigned char *v) noexcept nogil
