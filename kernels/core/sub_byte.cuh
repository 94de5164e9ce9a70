// Element types smaller than a byte: how they pack, and pointers to them.
#ifndef KVIT_CORE_SUB_BYTE_CUH
#define KVIT_CORE_SUB_BYTE_CUH

#include <stdint.h>

#include "core/array.cuh"
#include "core/macros.h"

namespace kvit {

/// An unsigned 4-bit code. Never stored alone: Array<Uint4, N> and SubBytePtr<Uint4> pack two to a byte.
struct Uint4 {
  uint8_t value;  // 0..15
};

/// Bits that one element takes in memory.
template <class T>
inline constexpr int kBitsOf = 8 * int(sizeof(T));
template <>
inline constexpr int kBitsOf<Uint4> = 4;

/// Bytes that `elements` elements take; they must fill whole bytes.
template <class T>
constexpr KVIT_HD int64_t BytesOf(int64_t elements) {
  return elements * kBitsOf<T> / 8;
}

/// N codes in N / 2 bytes, element 0 in the low half of byte 0:
///
///   byte      0        1
///   bits   7..4 3..0 7..4 3..0
///   code     1    0    3    2
template <int N>
struct alignas(AccessAlignment(N / 2)) Array<Uint4, N> {
  static_assert(N > 0 && N % 2 == 0, "an Array of Uint4 fills whole bytes: give it an even number of codes");
  using Element = Uint4;
  static constexpr int kSize = N;

  constexpr KVIT_HD Uint4 operator[](int i) const { return {uint8_t((bytes[i / 2] >> (i % 2 * 4)) & 15)}; }
  constexpr KVIT_HD void Set(int i, Uint4 code) {
    const int shift = i % 2 * 4;
    bytes[i / 2] = uint8_t((bytes[i / 2] & ~(15 << shift)) | (code.value << shift));
  }

  uint8_t bytes[N / 2];
};

/// Points at packed elements; counts in elements, like T*. Element i lives in byte i * bits / 8.
template <class T>
class SubBytePtr {
 public:
  static_assert(kBitsOf<T> < 8, "a type of whole bytes has ordinary pointers");

  SubBytePtr() = default;
  KVIT_HD explicit SubBytePtr(void* bytes) : bytes_(static_cast<char*>(bytes)) {}

  /// The byte that holds element i.
  KVIT_HD char* Address(int64_t i) const { return bytes_ + BytesOf<T>(i); }

  /// Needs a whole number of bytes: an even number of 4-bit elements.
  KVIT_HD SubBytePtr operator+(int64_t elements) const { return SubBytePtr(Address(elements)); }

 private:
  char* bytes_ = nullptr;
};

namespace detail {
template <class T, bool kSubByte>
struct PointerToImpl {
  using Type = T*;
};
template <class T>
struct PointerToImpl<T, true> {
  using Type = SubBytePtr<T>;
};
}  // namespace detail

/// T*, or SubBytePtr<T> where T is smaller than a byte.
template <class T>
using PointerTo = typename detail::PointerToImpl<T, (kBitsOf<T> < 8)>::Type;

/// PointerTo<T> at the bytes of `memory`.
template <class T>
KVIT_HD PointerTo<T> PointTo(void* memory) {
  if constexpr (kBitsOf<T> < 8) {
    return SubBytePtr<T>(memory);
  } else {
    return static_cast<T*>(memory);
  }
}

/// The byte that holds element i, whatever the pointer.
template <class T>
KVIT_HD char* AddressOf(T* pointer, int64_t i) {
  return reinterpret_cast<char*>(pointer + i);
}
template <class T>
KVIT_HD char* AddressOf(SubBytePtr<T> pointer, int64_t i) {
  return pointer.Address(i);
}

}  // namespace kvit

#endif  // KVIT_CORE_SUB_BYTE_CUH
