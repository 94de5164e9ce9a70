"""kernels/attention/general_mask.cuh: every key that a query sees or not, against the reference; and the ranges around
what several queries see."""

import itertools

import numpy as np
import pytest

from kvit import reference
from support.host_program import ALL_MEMORY
from support.modified import beyond, branches

CASES = [(0, 1), (1, 1), (7, 3), (3, 5), (40, 12), (40, 40), (90, 70)]  # (keys, queries): none, few, more than bits
MOST = 96  # keys of a case, whose bits are written
LATER = 13  # where words begin besides

# One line of every query: its position, its range, a bit for each key that it sees, and the positions of those, asked
# key by key and word by word; and of all queries from the first to it the range that the scheduler takes, and that from
# it to the last which all see.
BODY = """
  int32_t* out = reinterpret_cast<int32_t*>(params.output);
  for (int i = 0; i < {rules} * {count}; ++i) {{
    const auto& [left, right, chunk, causal] = rules[i / {count}];
    const auto& of_case = cases[i % {count}];
    struct {{ int32_t causal; KvitGeneral general; }} own = {{causal, {{}}}};
    own.general.window_left = left;
    own.general.window_right = right;
    own.general.chunk = chunk;
    own.general.by_chunk = KvitDivisorOf(chunk > 0 ? chunk : 1);
    if ({has_spans}) own.general.spans = images;
    if ({has_trees}) {{ own.general.trees = trees; own.general.tree_words = {words}; }}
    const GeneralMask mask(own);
    const SequenceWork work = {{of_case[0], of_case[1], of_case[2], 0, 0, false}};
    for (int token = 0; token < work.new_tokens; ++token) {{
      const KeySet set = mask.Set(work, token);
      const KeyRange before = mask.Of(work).Union(0, token), behind = mask.Of(work).Common(token, work.new_tokens - 1);
      const int32_t row[] = {{set.position, mask.PositionOf(work, token), before.begin, before.end, behind.begin,
                             behind.end}};
      for (int32_t x : row) StoreGlobal(out++, x);
      for (int key = 0; key < {most}; ++key) {{
        StoreGlobal(out++, key < work.length && set.Has(key) ? set.PositionOf(key) : -1);
      }}
      for (int tile : {{0, {later}}}) {{  // the same by whole words, as of tiles that begin anywhere
        for (int i = 0; i < 3; ++i) {{
          const uint32_t word = set.Word(tile + i * 32);
          for (int bit = 0; bit < 32; ++bit) {{
            const int position = set.PositionFrom(tile + i * 32) + CountBits(word & OnesBelow(bit));
            const bool has = tile + i * 32 + bit < work.length && (word >> bit & 1u) != 0;
            StoreGlobal(out++, has ? position : -1);
          }}
        }}
      }}
    }}
  }}
"""


# Masks alone and in pairs: (left, right, chunk, causal).
SIZES = [(0, 0, 0), (1, 0, 0), (9, 0, 0), (0, 0, 8), (0, 0, 1), (9, 0, 8), (5, 3, 0), (0, 2, 16), (1000, 1000, 1000)]
RULES = [(*size, causal) for size, causal in itertools.product(SIZES, (1, 0))]


@pytest.mark.parametrize(("arrays", "words"), [("", 1), ("spans", 1), ("trees", 1), ("trees", 2), ("spans trees", 1)])
def test_a_query_sees_the_keys_that_the_reference_says(rng, host_programs, arrays, words):
    starts = np.cumsum([0, *(queries for _, queries in CASES)])
    spans = np.concatenate([images(rng, *case) for case in CASES])
    trees = np.concatenate([branches(rng, queries, words) for _, queries in CASES])
    given = beyond(trees, [queries for _, queries in CASES])  # bits of no new token say nothing
    numbers = ", ".join(
        f"{{{keys}, {queries}, {start}}}" for (keys, queries), start in zip(CASES, starts, strict=False)
    )
    held = f"""#include "attention/general_mask.cuh"
        const int32_t cases[][3] = {{{numbers}}};
        const int32_t rules[][4] = {{{", ".join(f"{{{', '.join(map(str, rule))}}}" for rule in RULES)}}};
        const int32_t images[] = {{{", ".join(map(str, spans.reshape(-1)))}}};
        const uint64_t trees[] = {{{", ".join(f"{x}ull" for x in given.view(np.uint64).reshape(-1))}}};"""
    memory = f"{ALL_MEMORY}, {{images, sizeof images, 0, 0}}, {{trees, sizeof trees, 0, 0}}"
    size = len(RULES) * int(starts[-1]) * (6 + 3 * MOST) * 4
    outcome = host_programs.run(
        BODY.format(rules=len(RULES), count=len(CASES), words=words, most=MOST, later=LATER,
                    has_spans=int("spans" in arrays), has_trees=int("trees" in arrays)),
        threads=32, includes=held, spans=memory, output_bytes=size, memory_bytes=-(-size // 4096) * 4096,
    )  # fmt: skip
    assert not outcome.error
    rows = iter(np.frombuffer(outcome.output, np.int32).reshape(-1, 6 + 3 * MOST).tolist())
    for left, right, chunk, causal in RULES:
        for (keys, queries), start in zip(CASES, starts, strict=False):
            seen = [
                reference.seen_keys(
                    keys, queries, i, causal=bool(causal), window=(left or None, right or None), chunk=chunk or None,
                    span=spans[start + i] if "spans" in arrays else None,
                    tree=trees[start + i] if "trees" in arrays else None,
                )
                for i in range(queries)
            ]  # fmt: skip
            for i in range(queries):
                position, same, begin, end, common_begin, common_end, *found = next(rows)
                expected = [-1] * MOST
                for key in np.flatnonzero(seen[i].keys):
                    expected[key] = seen[i].positions[key]
                by_key, by_word, later = found[:MOST], found[MOST : 2 * MOST], found[2 * MOST :]
                assert by_key == by_word == expected, (keys, queries, i, left, right, chunk, causal)
                assert later == [*expected[LATER:], *[-1] * LATER]
                assert position == same == seen[i].position
                any_sees, all_see = (f([one.keys for one in part], axis=0) for f, part in
                                     ((np.any, seen[: i + 1]), (np.all, seen[i:])))  # fmt: skip
                assert not any_sees[: max(0, begin)].any() and not any_sees[max(0, end) :].any()
                assert all_see[max(0, common_begin) : max(0, common_end)].all()
                is_tree = "trees" in arrays and queries <= 64 * words and keys >= queries
                if any_sees.any() and not is_tree:  # and no range could be smaller
                    assert any_sees[begin] and any_sees[end - 1]
    assert next(rows, None) is None


def images(rng, keys, queries):
    """[queries, 2] spans of some of them, one behind the other, some from before the first query on."""
    ends = np.sort(rng.integers(0, keys + 1, 5))
    positions = keys - queries + np.arange(queries)
    rows = [
        next(((a, b) for a, b in zip(ends[::2], ends[1::2], strict=False) if a <= p < b), (0, 0)) for p in positions
    ]
    return np.array(rows, np.int32).reshape(-1, 2)
