"""kernels/core/array.cuh and sub_byte.cuh: what a register fragment is in memory."""

import pytest

HEADERS = ["core/sub_byte.cuh", "core/types.h"]


@pytest.mark.parametrize(
    ("array", "size", "alignment"),
    [
        ("Array<Half, 8>", 16, 16),  # one 16-byte access in every element type
        ("Array<uint8_t, 16>", 16, 16),
        ("Array<Uint4, 32>", 16, 16),
        ("Array<Half, 2>", 4, 4),  # a (scale, zero) pair
        ("Array<Uint4, 2>", 1, 1),
        ("Array<Half, 12>", 24, 8),  # 24 bytes can move as three accesses of 8
        ("Array<float, 12>", 48, 16),
        ("Array<float, 3>", 12, 4),
    ],
)
def test_an_array_is_packed_and_aligned_to_its_widest_access(cxx, array, size, alignment):
    assert cxx.numbers(HEADERS, f'printf("%zu %zu", sizeof({array}), alignof({array}));') == [size, alignment]


def test_uint4_codes_pack_low_half_first_and_leave_their_neighbours_alone(cxx):
    body = """
      Array<Uint4, 4> codes{};
      for (int i = 0; i < 4; ++i) codes.Set(i, {uint8_t(0xA + i)});
      codes.Set(2, {0x1});
      printf("%d %d ", codes.bytes[0], codes.bytes[1]);
      for (int i = 0; i < 4; ++i) printf("%d ", codes[i].value);
    """
    assert cxx.numbers(HEADERS, body) == [0xBA, 0xD1, 0xA, 0xB, 0x1, 0xD]


def test_low_bit_and_log2(cxx):
    body = """
      for (int n : {1, 64, 96, 192, 256, 576}) printf("%d %d ", LowBit(n), Log2Floor(n));
    """
    assert cxx.numbers(HEADERS, body) == [1, 0, 64, 6, 32, 6, 64, 7, 256, 8, 64, 9]


def test_odd_numbers_of_4_bit_codes_are_refused(cxx):
    assert "fills whole bytes: give it an even number of codes" in cxx.refusal(HEADERS, "Array<Uint4, 3> codes;")


def test_pointers_count_in_elements_whatever_their_width(cxx):
    body = """
      char memory[64];
      for (int i : {0, 2, 32, 96}) {
        printf("%d ", int(AddressOf(PointTo<Uint4>(memory) + i, 0) - memory));
        printf("%d ", int(AddressOf(PointTo<Uint4>(memory), i + 1) - memory));  // an odd element shares its byte
      }
      printf("%d ", int(AddressOf(PointTo<Half>(memory) + 3, 4) - memory));
      printf("%d ", int(AddressOf(PointTo<uint8_t>(memory), 5) - memory));
    """
    assert cxx.numbers(HEADERS, body) == [0, 0, 1, 1, 16, 16, 48, 48, 14, 5]


def test_offsets_beyond_32_bits_keep_all_their_bits(cxx):
    body = 'printf("%lld", (long long)BytesOf<Uint4>(int64_t(3) << 33));'
    assert cxx.numbers(HEADERS, body) == [3 << 32]


def test_a_sub_byte_pointer_to_whole_bytes_is_refused(cxx):
    assert "a type of whole bytes has ordinary pointers" in cxx.refusal(HEADERS, "SubBytePtr<uint8_t> pointer;")
