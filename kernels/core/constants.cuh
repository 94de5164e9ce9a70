// Loops over compile-time numbers.
#ifndef KVIT_CORE_CONSTANTS_CUH
#define KVIT_CORE_CONSTANTS_CUH

#include <type_traits>
#include <utility>

#include "core/macros.h"

namespace kvit {

namespace detail {

template <class Body, int... I>
KVIT_HD void ForEachOf(Body&& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

}  // namespace detail

/// Calls body(i) for i = 0 .. N - 1 in order, each a std::integral_constant: `decltype(i)::value` is a template's
/// argument.
template <int N, class Body>
KVIT_HD void ForEachConstant(Body&& body) {
  detail::ForEachOf(body, std::make_integer_sequence<int, N>{});
}

/// A bool that is known when code is compiled, in the place of one that is not.
template <bool Value>
struct Known {
  KVIT_HD constexpr operator bool() const { return Value; }
};

}  // namespace kvit

#endif  // KVIT_CORE_CONSTANTS_CUH
