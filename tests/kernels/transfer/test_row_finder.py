"""kernels/transfer/row_finder.cuh: every row of a call finds its sequence, its place in it and its page, or why not."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest

from support.host_program import ALL_MEMORY

NUM_PAGES, HEAD = 50, 8
NONE, PAGE, LENGTH, INDPTR, NOBODYS = 0, 1, 2, 3, -1
FIELDS = ("kind", "sequence", "position", "slot", "page", "row")


@dataclass
class Call:
    """Tables of a call as kernels get them, right or wrong."""

    page_size: int
    pages: np.ndarray  # [sequence, slot]; ragged: [entry]
    lengths: np.ndarray
    indptr: np.ndarray  # of the rows
    total: int
    page_indptr: np.ndarray | None = None

    def numbers(self):
        ragged = self.page_indptr is not None
        slots = self.pages.shape[-1]
        head = [len(self.lengths), self.page_size, slots, self.total, int(ragged), self.pages.size, 0, 0]
        parts = (self.pages, self.lengths, self.indptr, self.page_indptr if ragged else [])
        return [*head, *(int(number) for part in parts for number in np.ravel(part))]

    def find(self, row):
        """(kind, sequence, position, slot, page, row in the page) of a row of a call whose row offsets rise."""
        owners = [s for s in range(len(self.lengths)) if self.indptr[s] <= row < self.indptr[s + 1]]
        return self.place(owners[0], row) if owners else {"kind": NOBODYS}

    def place(self, sequence, row):
        """The same of a row that is this sequence's."""
        if self.page_indptr is None:
            pages = self.pages[sequence]
        else:
            begin, end = self.page_indptr[sequence : sequence + 2]
            if not 0 <= begin <= end <= len(self.pages):
                return {"kind": INDPTR, "sequence": sequence}
            pages = self.pages[begin:end]
        length = self.lengths[sequence]
        position = length - (self.indptr[sequence + 1] - row)
        if not 0 <= length <= len(pages) * self.page_size or position < 0:
            return {"kind": LENGTH, "sequence": sequence}
        slot, in_page = divmod(position, self.page_size)
        found = {"sequence": sequence, "position": position, "slot": slot, "page": pages[slot]}
        if not 0 <= pages[slot] < NUM_PAGES:
            return {"kind": PAGE, "sequence": sequence, "slot": slot, "page": pages[slot]}
        return {"kind": NONE, **found, "row": in_page}


# Every row of every call, as Find finds it; and how often a place that another call gave, or this one with a number
# changed, was confirmed though Find says otherwise, or not confirmed though Find says the same.
FIND = """
  const int32_t* at[{calls}];
  at[0] = numbers;
  for (int i = 1; i < {calls}; ++i) at[i] = at[i - 1] + offsets[i - 1];
  const auto each = [&](int call, auto&& body) {{
    int32_t head[8];
    for (int i = 0; i < 8; ++i) head[i] = LoadGlobal<int32_t>(at[call] + i);
    const auto [sequences, page_size, slots, total, ragged, entries, none, nothing] = head;
    const int32_t* const pages = at[call] + 8;
    const int32_t* const lengths = pages + entries;
    const int32_t* const indptr = lengths + sequences;
    KvitCache cache = {{}};
    cache.num_pages = {num_pages};
    cache.page_size = page_size;
    const int32_t* const page_indptr = ragged ? indptr + sequences + 1 : nullptr;
    const int stride = ragged ? 0 : slots;
    const KvitPageTable table = {{pages, page_indptr, lengths, stride, sequences, ragged ? entries : slots}};
    const KvitTokens tokens = {{indptr, 0, total}};
    bool falls = false;
    for (int i = 0; i < sequences; ++i) {{
      const auto begin = LoadGlobal<int32_t>(indptr + i);
      falls |= begin < 0 || LoadGlobal<int32_t>(indptr + i + 1) < begin;
    }}
    body(RowFinder<false>(cache, table, tokens), Sizes{{sequences, page_size, total, entries, stride, falls}});
  }};
  const auto is_same = [](const FoundPlace& a, const FoundPlace& b) {{
    return a.token.begin == b.token.begin && a.token.sequence == b.token.sequence &&
           a.token.position == b.token.position && a.slot.slot == b.slot.slot && a.slot.page == b.slot.page;
  }};
  auto* out = reinterpret_cast<int32_t*>(params.output);
  int wrong = 0, confirmed = 0;
  for (int call = BlockIndex(); call < {calls}; call += GridSize()) {{
    each(call, [&](const auto& finder, const Sizes& sizes) {{
      for (int row = 0; row < sizes.total; ++row) {{
        const FoundPlace found = finder.Find(row);
        const KvitFault& fault = found.row.fault;
        const bool exists = found.row.Exists();
        const int fields[] = {{fault.kind, exists ? found.token.sequence : fault.sequence, found.token.position,
                              exists ? found.slot.slot : fault.slot, exists ? found.slot.page : fault.value,
                              found.row.token_in_page}};
        if (LaneIndex() == 0) {{
          for (int i = 0; i < 6; ++i) StoreGlobal(out + (rows_before[call] + row) * 6 + i, fields[i]);
        }}
        const auto guess = [&](FoundPlace early) {{
          if (sizes.stride != 0) early.token.begin = int64_t(early.token.sequence) * sizes.stride;  // no memory says so
          // It lies in the tables of this call, whatever they say. Where offsets fall, two sequences may have a row.
          const int64_t entry = early.token.begin + early.slot.slot;
          if (!early.row.Exists() || early.token.sequence < 0 || early.token.sequence >= sizes.sequences) return;
          if (entry < 0 || entry >= sizes.entries) return;
          if (sizes.falls && early.token.sequence != found.token.sequence) return;
          const bool confirms = finder.Confirms(early, row);
          wrong += confirms != (exists && is_same(early, found));
          confirmed += confirms;
        }};
        guess(found);
        for (int other = 0; other < {calls}; ++other) {{
          each(other, [&](const auto& others, const Sizes& its) {{
            if (row >= its.total || its.page_size != sizes.page_size) return;
            FoundPlace early = others.Find(row);
            for (int by : {{0, 1, 6}}) {{  // in all where it is, one behind, and seven
              early.token.position += by;
              early.slot.slot = early.token.position / sizes.page_size;
              if (early.token.position >= 0) guess(early);
            }}
          }});
        }}
        for (int field = 0; field < 4; ++field) {{
          for (int by : {{-1, 1, 7}}) {{
            FoundPlace early = found;
            early.token.sequence += (field == 0) * by;
            early.token.position += (field == 1) * by;
            early.token.begin += (field == 2) * by;
            early.slot.page += (field == 3) * by;
            early.slot.slot = early.token.position / sizes.page_size;  // as whoever looked made it
            if (early.token.position >= 0) guess(early);
          }}
        }}
      }}
    }});
  }}
  if (LaneIndex() == 0) {{
    AtomicAdd(&counts[0], uint32_t(wrong));
    AtomicAdd(&counts[1], uint32_t(confirmed));
    if (AtomicAdd(&counts[2], 1u) == uint32_t(GridSize() - 1)) {{
      StoreGlobal(out + {rows} * 6, LoadGlobal<uint32_t>(&counts[0]));
      StoreGlobal(out + {rows} * 6 + 1, LoadGlobal<uint32_t>(&counts[1]));
    }}
  }}
"""


def find(host_programs, calls):
    """[call][row] what Find finds, {field: number}; how many guesses were judged wrongly, and how many confirmed."""
    numbers = [call.numbers() for call in calls]
    rows = [call.total for call in calls]
    before = np.cumsum([0, *rows[:-1]])
    flat = [number for part in numbers for number in part]
    outcome = host_programs.run(
        FIND.format(calls=len(calls), num_pages=NUM_PAGES, rows=sum(rows)),
        grid=min(4, len(calls)),
        output_bytes=(6 * sum(rows) + 2) * 4,
        memory_bytes=-(-(6 * sum(rows) + 2) * 4 // 4096) * 4096,
        includes=f"""#include "transfer/row_finder.cuh"
            const int32_t numbers[] = {{{", ".join(map(str, flat))}}};
            const int offsets[] = {{{", ".join(str(len(part)) for part in numbers)}}};
            const int rows_before[] = {{{", ".join(map(str, before))}}};
            uint32_t counts[3];
            struct Sizes {{
              int sequences, page_size, total, entries, stride;
              bool falls;  // offsets of rows
            }};""",
        spans=f"{ALL_MEMORY}, {{numbers, sizeof numbers, 0, 0}}, {{counts, sizeof counts, 1, 0}}",
    )
    assert not outcome.error
    found = np.frombuffer(outcome.output, np.int32)
    fields = found[:-2].reshape(-1, 6).tolist()
    split = [fields[begin : begin + count] for begin, count in zip(before, rows, strict=True)]
    return [[dict(zip(FIELDS, row, strict=True)) for row in call] for call in split], *found[-2:].tolist()


def assert_found(call, rows):
    """Rows found as the model says; a call with falling offsets may lose rows, and finds none that is another's."""
    rises = (np.diff(call.indptr) >= 0).all() and call.indptr[0] >= 0 and call.indptr[-1] <= call.total
    for row, found in enumerate(rows):
        if rises:
            expected = call.find(row)
        elif found["kind"] in (INDPTR, NOBODYS):
            continue
        else:
            begin, end = call.indptr[found["sequence"] : found["sequence"] + 2]
            assert 0 <= begin <= row < end <= call.total
            expected = call.place(found["sequence"], row)
        assert {field: found[field] for field in expected} == expected, f"row {row}"


def random_call(rng, sequences, page_size, *, ragged=False, padding=(0, 0)):
    counts = rng.integers(0, 5, sequences)
    lengths = counts + rng.integers(0, 40, sequences)
    lengths[rng.random(sequences) < 0.1] = 1  # shorter than its new rows, now and then
    slots = -(-lengths // page_size) + rng.integers(0, 2, sequences)
    indptr = padding[0] + np.cumsum([0, *counts])
    total = int(indptr[-1]) + padding[1]
    if ragged:
        page_indptr = np.cumsum([0, *slots])
        return Call(page_size, rng.integers(0, NUM_PAGES, page_indptr[-1]), lengths, indptr, total, page_indptr)
    return Call(page_size, rng.integers(0, NUM_PAGES, (sequences, max(slots))), lengths, indptr, total)


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_every_row_finds_its_place_and_guesses_are_judged_as_strictly(rng, host_programs, ragged):
    sizes = [(1, 16), (2, 1), (5, 16), (31, 16), (32, 3), (33, 64), (70, 3)]
    calls = [
        random_call(rng, *size, ragged=ragged, padding=(3, 4) if i % 2 else (0, 0)) for i, size in enumerate(sizes)
    ]
    found, wrong, confirmed = find(host_programs, calls)
    for call, rows in zip(calls, found, strict=True):
        assert_found(call, rows)
    assert wrong == 0
    assert confirmed > sum(row["kind"] == NONE for rows in found for row in rows)


def test_more_sequences_than_a_square_of_lanes(rng, host_programs):
    call = random_call(rng, 1100, 16)
    found, wrong, _ = find(host_programs, [call])
    assert_found(call, found[0])
    assert wrong == 0


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_wrong_tables_and_offsets_are_named_and_never_confirmed(rng, host_programs, ragged):
    # All beside the right call, whose places are guesses for the wrong ones. Its third sequence fills its pages.
    right = random_call(rng, 6, 4, ragged=ragged)
    room = 4 * (right.page_indptr[3] - right.page_indptr[2] if ragged else right.pages.shape[1])
    right.lengths[2] = room

    def wrong_call(name, at, value):
        call = copy.deepcopy(right)
        getattr(call, name).reshape(-1)[at] = value
        return call

    extremes = (-1, 10**6, 2**31 - 1, -(2**31))
    calls = [right, *(wrong_call("lengths", 2, value) for value in (*extremes, room + 1, room + 7))]
    calls += [wrong_call("pages", at, value) for at in (0, 3) for value in (*extremes, NUM_PAGES)]
    calls += [wrong_call("indptr", at, value) for at in (0, 3, 6) for value in (*extremes, 0)]
    if ragged:
        calls += [wrong_call("page_indptr", at, value) for at in (0, 3, 6) for value in extremes]
        calls += [wrong_call("page_indptr", 3, right.page_indptr[3] + by) for by in (-1, 1)]
    found, wrong, _ = find(host_programs, calls)
    for call, rows in zip(calls, found, strict=True):
        assert_found(call, rows)
    assert wrong == 0
