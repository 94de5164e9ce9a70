"""kernels/schedule/cta_range.cuh: ranges cover the line without gap or overlap, and everybody knows whose a unit is."""

import pytest

HEADERS = ["schedule/cta_range.cuh"]

# For every line, grid and number of partitions: what each CTA has, printed in halves of 31 bits.
CUT = """
  const auto print = [](int64_t x) {{ printf("%d %d ", int(x >> 31), int(x & 0x7fffffff)); }};
  for (int64_t total : {{{totals}}}) {{
    for (int ticket = 0; ticket < {grid}; ++ticket) {{
      const CtaRange range = CtaRange::Cut(total, ticket, {grid}, {partitions}, {fewest});
      printf("%d %d %d %d ", range.cta, range.ctas, range.Partition(), range.IsEmpty());
      print(range.begin);
      print(range.end);
    }}
  }}
"""
TOTALS = [0, 1, 2, 5, 6, 7, 12, 100, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**40 + 5]


# With fewest units of a CTA: none, one that divides some totals, and one that is more than most lines have.
@pytest.mark.parametrize("fewest", [1, 6, 150])
@pytest.mark.parametrize(("grid", "partitions"), [(1, 1), (6, 1), (6, 2), (6, 3), (7, 1), (132, 4), (264, 1)])
def test_ranges_cover_every_line_once_and_evenly(cxx, grid, partitions, fewest):
    totals = ", ".join(f"int64_t({total})" for total in TOTALS)
    body = CUT.format(totals=totals, grid=grid, partitions=partitions, fewest=fewest)
    numbers = iter(cxx.numbers(HEADERS, body))
    ctas = grid // partitions
    for total in TOTALS:
        ranges = {partition: [] for partition in range(partitions)}
        for ticket in range(grid):
            cta, used, partition, is_empty = (next(numbers) for _ in range(4))
            begin, end = ((next(numbers) << 31) + next(numbers) for _ in range(2))
            assert (cta, partition) == divmod(ticket, partitions)
            most = min(total, max(1, total // fewest))
            assert used == min(ctas, most)  # more CTAs than there is work for have nothing
            assert is_empty == (cta >= used)
            if not is_empty:
                ranges[partition].append((begin, end))
        for line in ranges.values():
            assert len(line) == min(ctas, most)
            assert [begin for begin, _ in line] == [0, *(end for _, end in line)][: len(line)]
            assert not line or line[-1][1] == total
            lengths = [end - begin for begin, end in line]
            assert not lengths or max(lengths) - min(lengths) <= 1 and min(lengths) >= min(fewest, total)
            assert lengths == sorted(lengths, reverse=True)
    assert next(numbers, None) is None


OWNERS = """
  for (int64_t total : {{{totals}}}) {{
    for (int ticket = 0; ticket < {grid}; ++ticket) {{
      const CtaRange range = CtaRange::Cut(total, ticket, {grid}, {partitions});
      if (range.IsEmpty()) continue;
      int wrong = 0;
      for (int other = 0; other < range.ctas; ++other) {{
        const int64_t begin = range.BeginOf(other), end = range.BeginOf(other + 1);
        const CtaRange its = CtaRange::Cut(total, range.TicketOf(other), {grid}, {partitions});
        wrong += its.cta != other || its.Partition() != range.Partition() || its.begin != begin || its.end != end;
        wrong += range.Owner(begin) != other || range.Owner(end - 1) != other;
      }}
      printf("%d ", wrong);
    }}
  }}
"""


def owners_that_are_wrong(cxx, grid, partitions, totals):
    body = OWNERS.format(totals=", ".join(f"int64_t({total})" for total in totals), grid=grid, partitions=partitions)
    answers = cxx.numbers(HEADERS, body)
    assert len(answers) == sum(min(grid // partitions, total) * partitions for total in totals)
    return [answer for answer in answers if answer]


@pytest.mark.parametrize(("grid", "partitions"), [(1, 1), (6, 2), (7, 1), (132, 4), (264, 1)])
def test_every_cta_knows_whose_any_unit_is(cxx, grid, partitions):
    # A CTA's own units are counted in 31 bits, in 32, and in more, with longer ranges in front and without.
    of_cta = [2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 5]
    totals = [grid // partitions * each + longer for each in of_cta for longer in (0, 1)]
    assert not owners_that_are_wrong(cxx, grid, partitions, TOTALS + totals)


def test_division_is_right_on_both_sides_of_32_bits(cxx):
    dividends = [0, 1, 6, 7, 2**31 - 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**60]
    divisors = [1, 2, 7, 132, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40]
    body = f"""
      for (int64_t a : {{{", ".join(f"int64_t({a})" for a in dividends)}}})
        for (int64_t b : {{{", ".join(f"int64_t({b})" for b in divisors)}}})
          printf("%d %d ", int(Divide(a, b) >> 31), int(Divide(a, b) & 0x7fffffff));
    """
    expected = [half for a in dividends for b in divisors for half in ((a // b) >> 31, a // b & 0x7FFFFFFF)]
    assert cxx.numbers(HEADERS, body) == expected
