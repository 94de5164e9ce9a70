"""kernels/attention/mask.cuh: what a query sees is what the reference says, and what several do."""

import pytest

from kvit import reference

LENGTHS = [0, 1, 2, 7, 64, 1000, 2**31 - 1]
QUERIES = [1, 2, 3, 9, 70]

MASK = """
  struct {{ int32_t causal; }} params = {{{causal}}};
  const CausalMask mask(params);
  for (int length : {{{lengths}}}) {{
    for (int new_tokens : {{{queries}}}) {{
      const SequenceWork work = {{length, new_tokens, 0, 0, 0, false}};
      printf("%d ", mask.LastUnion(work, 0).end);
      for (int token = 0; token < new_tokens; ++token) {{
        const KeyRange keys = mask.Visible(work, token);
        printf("%d %d %d ", keys.begin, keys.end, mask.Of(work).Union(0, token).end);
      }}
    }}
  }}
"""


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_query_sees_the_keys_that_the_reference_says(cxx, causal):
    lists = {"lengths": ", ".join(map(str, LENGTHS)), "queries": ", ".join(map(str, QUERIES))}
    numbers = iter(cxx.numbers(["attention/mask.cuh"], MASK.format(causal=int(causal), **lists)))
    for length in LENGTHS:
        for queries in QUERIES:
            last_end = next(numbers)
            for query in range(queries):
                begin, end, end_on_line = (next(numbers) for _ in range(3))
                # Of a query that sees nothing the range is empty, wherever it ends.
                assert (begin, max(begin, end)) == reference.visible_keys(length, queries, query, causal)
                assert end_on_line == end
            assert last_end == end
    assert next(numbers, None) is None
