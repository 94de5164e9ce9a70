"""kernels/cache/fast_divide.cuh: exact for every 31-bit dividend."""

HEADERS = ["cache/fast_divide.cuh"]


def test_it_divides_like_division(cxx):
    # Quotients change at multiples of the divisor, so an error shows there first: at and just below, small and large.
    body = """
      const int32_t large[] = {1000, 4097, 65535, 65536, 65537, 1 << 30, (1 << 30) + 1, 2147483646, 2147483647};
      const uint32_t end = 2147483647u;
      long checked = 0;
      auto check = [&](int32_t divisor) {
        const FastDivide divide(divisor);
        auto same = [&](uint32_t dividend) {
          ++checked;
          if (divide(dividend) == dividend / uint32_t(divisor)) return true;
          printf("%u / %d = %u", dividend, divisor, divide(dividend));
          return false;
        };
        const uint32_t last = end / uint32_t(divisor);
        for (uint32_t k = 0; k <= last && k < 300; ++k) {
          for (uint32_t quotient : {k, last - k}) {
            const uint32_t multiple = quotient * uint32_t(divisor);
            if (!same(multiple) || (multiple > 0 && !same(multiple - 1))) return false;
          }
        }
        return same(end);
      };
      for (int32_t divisor = 1; divisor <= 600; ++divisor) if (!check(divisor)) return 1;
      for (int32_t divisor : large) if (!check(divisor)) return 1;
      printf("%ld", checked);
    """
    assert cxx.numbers(HEADERS, body)[0] > 600 * 600
