"""kernels/schedule/: tile_scheduler.cuh, ticket.cuh, work_iterator.cuh; and pipeline/tile_walk.cuh, which follows them.

The work tiles of all CTAs together are all of the work, each once.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from support.host_program import ALL_MEMORY

PAGE_SIZE, TILE, ROWS, THREADS = 16, 32, 8, 64
WORDS = 9  # of a work tile, as RECORD writes it
MOST_TILES = 3000  # of all CTAs


@dataclass
class Batch:
    """Sequences of a call, as a table and offsets have them: right or wrong."""

    lengths: list[int]
    counts: list[int]  # new tokens
    heads: int
    group: int
    partitions: int
    causal: int
    split: int  # tiles; 0: none
    slots: int = 20
    indptr: list[int] | None = None  # instead of counts
    total: int | None = None
    window: int = 0  # keys that a query sees up to its own; 0: all

    def __post_init__(self):
        self.indptr = self.indptr or [0, *np.cumsum(self.counts).tolist()]
        self.total = self.indptr[-1] if self.total is None else self.total

    def numbers(self):
        head = [len(self.lengths), self.heads, self.group, self.partitions, self.causal, self.split]
        return [*head, self.slots, self.total, self.window, *self.lengths, *self.indptr]

    def sequence(self, i):
        """(length, first query, queries, whether anything is wrong) of sequence i, as kernels must see it."""
        length = min(max(0, self.lengths[i]), self.slots * PAGE_SIZE)
        begin, end = self.indptr[i : i + 2]
        is_bad = length != self.lengths[i] or not 0 <= begin <= end <= self.total
        if not 0 <= begin <= self.total:
            begin = end = 0
        return length, begin, max(begin, min(end, self.total)) - begin, is_bad

    def row_tiles(self, i):
        return -(-self.sequence(i)[2] * self.group // ROWS)

    def visible(self, i, row):
        """Keys that a query row sees."""
        length, _, queries, _ = self.sequence(i)
        return max(0, min(length, length - queries + row // self.group + 1)) if self.causal else length

    def rows(self, i, row_tile):
        return min(ROWS, self.sequence(i)[2] * self.group - row_tile * ROWS)

    def seen(self, i, row_tile):
        """Keys [begin, end) from the first that any row of a row tile sees to the last."""
        length, _, queries, _ = self.sequence(i)
        position = length - queries + row_tile * ROWS // self.group
        begin = max(0, position - self.window + 1) if self.window else 0
        return begin, self.visible(i, row_tile * ROWS + self.rows(i, row_tile) - 1)

    def first_tile(self, i, row_tile):
        begin, end = self.seen(i, row_tile)
        return begin // TILE if begin < end else 0

    def tiles(self, i, row_tile):
        return max(1, -(-self.visible(i, row_tile * ROWS + self.rows(i, row_tile) - 1) // TILE))

    def split_of(self, i):
        split = self.split
        while split and (self.sequence(i)[0] - 1) // TILE >> 10 >= split:
            split *= 2
        return split


# Every CTA writes its ticket, how many work tiles of every batch its range has, how often a walk along their tiles goes
# wrong, and then all of each. The last CTA to end writes what is left in the batches' counters, and the kind and the
# sequence of the fault that was reported.
RECORD = """
  using Scheduler = TileScheduler<{mask}, {rows}, {tile}, kThreads, 10, {opening}>;
  auto& shared_part = *reinterpret_cast<Scheduler::Shared*>(shared);
  const int32_t* at = numbers;
  auto* const output = reinterpret_cast<int32_t*>(params.output);
  for (int batch = 0; batch < {batches}; ++batch) {{
    int32_t head[9];
    for (int i = 0; i < 9; ++i) head[i] = LoadGlobal<int32_t>(at + i);
    const auto [sequences, heads, group, partitions, causal, split, slots, total, window] = head;
    KvitDecodeParams decode = {{}};
    decode.cache.page_size = {page_size};
    decode.cache.num_kv_heads = heads;
    decode.num_query_heads = heads * group;
    decode.group = KvitDivisorOf(group);
    decode.partitions = partitions;
    decode.causal = causal;
    decode.split_tiles = split;
    decode.table = {{nullptr, nullptr, at + 9, 0, sequences, slots}};
    decode.tokens = {{at + 9 + sequences, 0, total}};
    decode.fault = faults + batch;
    decode.workspace = counters[batch];
    decode.general.window_left = window;
    at += 9 + sequences + sequences + 1;

    const Ticket ticket(decode.workspace);
    const Scheduler scheduler(decode);
    const CtaRange range = scheduler.Find(shared_part, ticket);
    int32_t* const out = output + (batch * GridSize() + BlockIndex()) * {words};
    int count = 0, wrong = 0;
    if (!range.IsEmpty()) {{
      WorkIterator<Scheduler> works(scheduler, heads, range);
      TileWalk<Scheduler, {tile} / 2> walk(scheduler, works, 1);  // the second half of every tile
      for (; !works.Done(); works.Next()) {{
        const auto& work = works.work();
        const TileRange seen = scheduler.VisibleTiles(work);
        const int tile[] = {{work.sequence, work.head, work.row_tile, work.first, work.last, work.tiles.last,
                            scheduler.NumRows(work), seen.first < seen.last ? seen.last : -1,
                            work.of.is_bad + 2 * work.of.first_token}};
        if (ThreadIndex() == 37 && count < {most}) {{
          for (int i = 0; i < 9; ++i) StoreGlobal(out + 3 + count * 9 + i, tile[i]);
        }}
        ++count;
        for (int i = seen.first; i < seen.last; ++i) {{
          const bool is_there = !walk.Done() && walk.tile() == i && walk.work().sequence == work.sequence &&
                                walk.work().head == work.head && walk.work().row_tile == work.row_tile;
          const bool is_new = (i + 1) * {tile} > work.of.length - work.of.new_tokens;
          wrong += !is_there || walk.BandBegin() != uint32_t(i * {tile} + {tile} / 2) || walk.IsNew() != is_new;
          wrong += walk.Next() != (i + 1 < seen.last);
        }}
      }}
      wrong += !walk.Done() || walk.IsNew();
    }}
    if (ThreadIndex() == 37) {{
      StoreGlobal(out, range.ticket);
      StoreGlobal(out + 1, count);
      StoreGlobal(out + 2, wrong);
    }}
    SyncThreads();
  }}
  if (ThreadIndex() == 0 && AtomicAdd(&ended, 1u) == uint32_t(GridSize() - 1)) {{
    int32_t* const out = output + {batches} * GridSize() * {words};
    for (int batch = 0; batch < {batches}; ++batch) {{
      StoreGlobal(out + 3 * batch, LoadGlobal<uint32_t>(counters[batch]));
      StoreGlobal(out + 3 * batch + 1, LoadGlobal<int32_t>(&faults[batch].kind));
      StoreGlobal(out + 3 * batch + 2, LoadGlobal<int32_t>(&faults[batch].sequence));
    }}
  }}
"""


def record(host_programs, batches, grid, scheduler="fibers", mask="CausalMask", opening=0):
    """[batch][ticket] the work tiles of each CTA, and [batch] (kind, sequence) of the fault that was reported."""
    most = MOST_TILES // grid
    words = 3 + WORDS * most
    numbers = [number for batch in batches for number in batch.numbers()]
    size = len(batches) * (grid * words + 3) * 4
    outcome = host_programs.run(
        RECORD.format(
            mask=mask,
            rows=ROWS,
            tile=TILE,
            batches=len(batches),
            page_size=PAGE_SIZE,
            words=words,
            most=most,
            opening=opening,
        ),
        scheduler=scheduler,
        grid=grid,
        threads=THREADS,
        memory_bytes=-(-size // 4096) * 4096,
        output_bytes=size,
        includes=f"""#include "attention/general_mask.cuh"
            #include "attention/mask.cuh"
            #include "pipeline/tile_walk.cuh"
            #include "schedule/tile_scheduler.cuh"
            #include "schedule/work_iterator.cuh"
            const int32_t numbers[] = {{{", ".join(map(str, numbers))}}};
            KvitFault faults[{len(batches)}];
            uint32_t counters[{len(batches)}][64], ended;""",
        spans=f"{ALL_MEMORY}, {{numbers, sizeof numbers, 0, 0}}, {{faults, sizeof faults, 1, 0}}, "
        "{counters, sizeof counters, 1, 0}, {&ended, sizeof ended, 1, 0}",
    )
    assert not outcome.error
    found = np.frombuffer(outcome.output, np.int32)
    ctas = found[: -3 * len(batches)].reshape(len(batches), grid, words)
    ends = found[-3 * len(batches) :].reshape(len(batches), 3)
    assert not ends[:, 0].any(), "a counter of tickets is not what it was"
    tiles = []
    for batch in ctas:
        assert sorted(batch[:, 0]) == list(range(grid)), "two CTAs have one ticket"
        assert batch[:, 1].max() <= most
        assert not batch[:, 2].any(), "a walk along the tiles goes another way"
        by_ticket = {cta[0]: cta[3 : 3 + WORDS * cta[1]].reshape(-1, WORDS).tolist() for cta in batch}
        tiles.append([by_ticket[ticket] for ticket in range(grid)])
    return tiles, ends[:, 1:].tolist()


def check(batch, ctas):
    """All of the work, each tile once, on lines that are cut evenly."""
    split_of = [batch.split_of(i) or 1 for i in range(len(batch.lengths))]
    for partition in range(batch.partitions):
        # The line as it must be: head after head, row tile after row tile, tile after tile.
        line = [
            (i, head, row_tile, tile)
            for i in range(len(batch.lengths))
            for head in range(partition, batch.heads, batch.partitions)
            for row_tile in range(batch.row_tiles(i))
            for tile in range(batch.first_tile(i, row_tile), batch.tiles(i, row_tile))
        ]
        found, units = [], []
        for works in ctas[partition :: batch.partitions]:
            units.append(0)
            for i, head, row_tile, first, last, tiles, rows, seen, flags in works:
                assert first < last <= tiles == batch.tiles(i, row_tile)
                assert rows == batch.rows(i, row_tile)
                begin, end = batch.seen(i, row_tile)
                assert seen == (last if begin < end else -1)
                _, first_token, _, is_bad = batch.sequence(i)
                assert flags == is_bad + 2 * first_token
                if batch.split:
                    assert first % split_of[i] == 0 and last == min(first + split_of[i], tiles)
                units[-1] += 1 if batch.split else last - first
                # The first split of a row tile may begin before its tiles do.
                first = max(first, batch.first_tile(i, row_tile))
                found += [(i, head, row_tile, tile) for tile in range(first, last)]
        assert found == line
        assert max(units) - min(units) <= 1 and units == sorted(units, reverse=True)


def random_batch(rng, sequences, causal, split, partitions):
    lengths = rng.integers(0, 300 if sequences < 30 else 100, sequences)
    lengths[rng.random(sequences) < 0.2] = 0
    counts = rng.integers(0, 12 if sequences < 30 else 4, sequences)  # sometimes more than there are keys
    counts[rng.random(sequences) < 0.3] = 0
    counts[rng.integers(sequences)] = 5
    group = int(rng.choice([1, 3, 4, 5, 12, 16]))
    return Batch(lengths.tolist(), counts.tolist(), 4, group, partitions, causal, split)


@pytest.mark.parametrize("grid", [4, 24])
@pytest.mark.parametrize("sequences", [1, 6, 31, 32, 33, 100])
def test_all_ctas_together_have_all_of_the_work_once(rng, host_programs, grid, sequences):
    options = [(0, 0, 1), (1, 0, 1), (1, 0, 2), (0, 1, 4), (1, 1, 1), (1, 2, 2), (1, 3, 4), (0, 3, 1)]
    batches = [random_batch(rng, sequences, *option) for option in options]
    found, faults = record(host_programs, batches, grid)
    for batch, ctas in zip(batches, found, strict=True):
        check(batch, ctas)
    assert faults == [[0, 0]] * len(batches)


@pytest.mark.parametrize("opening", [1, 3])  # as long as the shortest row tiles, and longer
@pytest.mark.parametrize("grid", [4, 24, 96])  # the last: more CTAs than some calls have units
@pytest.mark.parametrize("sequences", [1, 6, 40])
def test_row_tiles_count_for_more_than_their_tiles(rng, host_programs, sequences, grid, opening):
    options = [(0, 0, 1), (1, 0, 1), (1, 0, 2), (0, 0, 4)]
    batches = [random_batch(rng, sequences, *option) for option in options]
    found, _ = record(host_programs, batches, grid, opening=opening)
    for batch, ctas in zip(batches, found, strict=True):
        for partition in range(batch.partitions):
            line = [
                (i, head, row_tile, unit - opening)
                for i in range(len(batch.lengths))
                for head in range(partition, batch.heads, batch.partitions)
                for row_tile in range(batch.row_tiles(i))
                for unit in range(opening + batch.tiles(i, row_tile))
            ]
            ranges = np.array_split(
                np.array(line, dtype=np.int64).reshape(-1, 4), min(grid // batch.partitions, len(line)) or 1
            )
            for k, works in enumerate(ctas[partition :: batch.partitions]):
                tiles = [(*work[:3], tile) for work in works for tile in range(work[3], work[4])]
                expected = ranges[k] if k < len(ranges) else np.empty((0, 4), np.int64)
                assert tiles == [tuple(unit) for unit in expected.tolist() if unit[3] >= 0]


@pytest.mark.parametrize("sequences", [1, 6, 40])
@pytest.mark.parametrize("window", [1, 33, 64, 400])  # one tile, two, the ends of tiles, all keys
def test_tiles_before_a_window_are_nobody_s_work(rng, host_programs, window, sequences):
    options = [(1, 0, 1), (1, 0, 2), (1, 1, 1), (1, 2, 2), (1, 3, 4), (0, 0, 1), (0, 2, 4)]
    batches = [random_batch(rng, sequences, *option) for option in options]
    for batch in batches:
        batch.window = window
    found, faults = record(host_programs, batches, 8, mask="GeneralMask")
    for batch, ctas in zip(batches, found, strict=True):
        check(batch, ctas)
    assert faults == [[0, 0]] * len(batches)


def test_one_sequence_without_queries_between_many_and_calls_without_any_work(host_programs):
    batches = [
        Batch([5], [0], 1, 8, 1, 1, 0),
        Batch([0, 0], [0, 0], 1, 8, 1, 1, 0),
        Batch([0], [3], 1, 8, 1, 1, 0),  # queries that see nothing still have a tile, for their zeros
        Batch([9] * 40, [0] * 40, 2, 4, 2, 1, 2),
        Batch([9] * 40, [0] * 39 + [1], 2, 4, 2, 1, 0),
    ]
    found, _ = record(host_programs, batches, 4)
    for batch, ctas in zip(batches, found, strict=True):
        check(batch, ctas)
    assert [sum(map(len, ctas)) for ctas in found] == [0, 0, 3, 0, 2]


def test_a_sequence_of_more_splits_than_a_tree_has_room_for_is_cut_less_often(host_programs):
    batches = [
        Batch([tiles * TILE, 70], [1, 1], 1, 4, 1, 1, 1, slots=3000 * TILE // PAGE_SIZE) for tiles in (1024, 1025)
    ]
    found, _ = record(host_programs, batches, 12)
    for batch, ctas, splits in zip(batches, found, (1024, 513), strict=True):
        assert batch.split_of(0) == (1 if splits == 1024 else 2) and batch.split_of(1) == 1
        check(batch, ctas)
        assert sum(work[0] == 0 for works in ctas for work in works) == splits


@pytest.mark.parametrize("sequences", [3, 40])
def test_wrong_lengths_and_offsets_are_reported_and_their_work_is_dealt_out_all_the_same(host_programs, sequences):
    # Of the sequence that is wrong, what exists of its queries gets its outputs, which are NaN.
    good = [50] * (sequences - 1)
    offsets = list(range(sequences + 1))
    batches = [
        Batch([*good, -1], [1] * sequences, 2, 4, 1, 1, 0),
        Batch([2**31 - 1, *good], [1] * sequences, 2, 4, 2, 0, 0),
        Batch([50] * sequences, [], 2, 4, 1, 1, 2, indptr=[*offsets[:-1], 10**6], total=sequences + 7),
        Batch([50] * sequences, [], 2, 4, 1, 1, 0, indptr=[*offsets[:-1], 0], total=sequences),
        Batch([50] * sequences, [], 2, 4, 1, 1, 0, indptr=[-5, *offsets[1:]], total=sequences),
    ]
    found, faults = record(host_programs, batches, 4)
    for batch, ctas in zip(batches, found, strict=True):
        check(batch, ctas)
    length, indptr = 2, 3
    last = sequences - 1
    assert faults == [[length, last], [length, 0], [indptr, last], [indptr, last], [indptr, 0]]


@pytest.mark.parametrize("scheduler", ["fibers", "threads"])
@pytest.mark.parametrize("grid", [1, 3, 32])
def test_every_cta_takes_another_ticket_and_the_counter_ends_as_it_began(rng, host_programs, grid, scheduler):
    batch = Batch([200, 40], [2, 1], 2, 4, 1, 1, 0)
    found, _ = record(host_programs, [batch], grid, scheduler)
    check(batch, found[0])
