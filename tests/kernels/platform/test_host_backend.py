"""The host backend catches what a GPU lets pass: each mistake is made on purpose, beside the same code without it."""

import numpy as np
import pytest

from support.host_program import HostPrograms

# Copies 4 bytes per thread to shared memory, then hands each thread its neighbour's.
COPY = """
    const int thread = ThreadIndex(), neighbour = (thread + 1) % kThreads;
    CopyAsync<4>(shared + 4 * thread, params.input + 4 * thread, true);
    CopyAsyncCommit();
    {wait}
    {barrier}
    const auto received = LoadShared<uint32_t>(shared + 4 * neighbour);
    SyncThreads();
    CopyAsyncWait<0>();
    StoreGlobal(params.output + 4 * thread, received);
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("host"))


def neighbours(threads):
    return np.roll(np.arange(4 * threads) % 256, -4).astype(np.uint8).tobytes()


@pytest.mark.parametrize("scheduler", ["fibers", "threads"])
def test_copies_have_landed_after_the_wait(programs, scheduler):
    code = COPY.format(wait="CopyAsyncWait<0>();", barrier="SyncThreads();")
    assert programs.run(code, scheduler=scheduler, threads=64, output_bytes=256).output == neighbours(64)


def test_without_the_wait_a_copy_is_poison(programs):
    code = COPY.format(wait="", barrier="SyncThreads();")
    assert programs.run(code, threads=64, output_bytes=256).output == b"\xff" * 256


def test_waiting_for_one_group_too_few_reads_poison(programs):
    # Two groups under way: the wait that allows one newer group has landed the first and not the second.
    outcome = programs.run(
        """
    const int thread = ThreadIndex();
    for (int group = 0; group < 2; ++group) {
      CopyAsync<4>(shared + 4 * (32 * group + thread), params.input + 4 * (32 * group + thread), true);
      CopyAsyncCommit();
    }
    CopyAsyncWait<1>();
    for (int group = 0; group < 2; ++group) {
      StoreGlobal(params.output + 4 * (32 * group + thread), LoadShared<uint32_t>(shared + 4 * (32 * group + thread)));
    }
    CopyAsyncWait<0>();
""",
        output_bytes=256,
    )
    assert outcome.output == bytes(range(128)) + b"\xff" * 128


def test_a_copy_that_nobody_waits_for_is_an_error(programs):
    code = "CopyAsync<16>(shared + 16 * ThreadIndex(), params.input, true);"
    assert "asynchronous copies that nobody waited for; CTA 0 of 1, thread 0" in programs.run(code).error


def test_a_masked_copy_writes_zeros_and_reads_nothing(programs):
    code = """
    CopyAsync<16>(shared + 16 * ThreadIndex(), nullptr, false);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    StoreGlobal(params.output + 16 * ThreadIndex(), LoadShared<Words<16>>(shared + 16 * ThreadIndex()));
"""
    assert programs.run(code, output_bytes=512).output == bytes(512)


def test_guesses_are_wrong_for_some_places_and_right_for_others(programs):
    # Each thread asks twice for its own number: what it gets is one and the same, right or wrong.
    code = """
    const auto p = reinterpret_cast<const int32_t*>(params.input) + ThreadIndex();
    StoreGlobal(params.output + 8 * ThreadIndex(), LoadSpeculative(p));
    StoreGlobal(params.output + 8 * ThreadIndex() + 4, LoadSpeculative(p));
"""
    loaded = np.frombuffer(programs.run(code, threads=64, output_bytes=512).output, np.int32).reshape(64, 2)
    numbers = np.frombuffer(bytes(range(256)), np.int32)
    assert 16 <= np.count_nonzero(loaded[:, 0] == numbers) <= 48
    assert np.array_equal(loaded[:, 0], loaded[:, 1])


def test_shared_memory_starts_as_nan(programs):
    code = "StoreGlobal(params.output + 4 * ThreadIndex(), LoadShared<float>(shared + 4 * ThreadIndex()));"
    assert np.isnan(np.frombuffer(programs.run(code, output_bytes=128).output, np.float32)).all()


# Under ThreadSanitizer only what the kernel's own barriers order is ordered.
@pytest.mark.parametrize("barrier", ["SyncThreads();", ""], ids=["barrier", "no barrier"])
def test_a_missing_cta_barrier_is_a_race(programs, barrier):
    code = COPY.format(wait="CopyAsyncWait<0>();", barrier=barrier)
    outcome = programs.run(code, scheduler="threads", sanitize=True, threads=64)
    assert ("data race" in outcome.race) == (barrier == "")


@pytest.mark.parametrize("barrier", ["SyncWarp();", ""], ids=["barrier", "no barrier"])
def test_a_missing_warp_barrier_before_ldmatrix_is_a_race(programs, barrier):
    # Lane i copies row i and hands the address of row 31 - i to ldmatrix, which by itself orders nothing.
    code = f"""
    CopyAsync<16>(shared + 16 * ThreadIndex(), params.input + 16 * ThreadIndex(), true);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    {barrier}
    uint32_t tiles[4];
    LoadMatrixX4(tiles, shared + 16 * (31 - ThreadIndex()));
    StoreGlobal(params.output + 4 * ThreadIndex(), tiles[0]);
"""
    outcome = programs.run(code, scheduler="threads", sanitize=True)
    assert ("data race" in outcome.race) == (barrier == "")


@pytest.mark.parametrize(
    "access",
    [
        "LoadGlobal<Words<16>>(params.input + 8)",
        "LoadShared<Words<16>>(shared + 8)",
        "StoreGlobal(params.output + 2, 1.0f)",
        "StoreShared(shared + 4, Words<8>{})",
        "CopyAsync<16>(shared + 8, params.input, true)",
        "CopyAsync<16>(shared, params.input + 4, true)",
    ],
)
def test_a_misaligned_vector_is_an_error_with_the_threads_place(programs, access):
    error = programs.run(f"if (BlockIndex() == 1 && ThreadIndex() == 37) {access};", threads=64, grid=3).error
    assert "is misaligned; CTA 1 of 3, thread 37 (warp 1, lane 5)" in error


@pytest.mark.parametrize(
    ("access", "what"),
    [
        ("LoadGlobal<float>(params.input + kBytes)", "load of 4 bytes at"),
        ("StoreGlobal(params.input, 1.0f)", "store of 4 bytes at"),
        ("AtomicAdd(reinterpret_cast<uint32_t*>(params.input), 1)", "atomic add of 4 bytes at"),
        ("CopyAsync<16>(shared, params.output - 16, true)", "asynchronous copy from global memory of 16 bytes at"),
        ("FetchToL2(params.output - 1)", "fetch of 1 bytes at"),
    ],
    ids=["past the end", "read-only", "atomic on read-only", "before the beginning", "a fetch"],
)
def test_memory_outside_the_launch_is_an_error(programs, access, what):
    error = programs.run(f"constexpr int kBytes = 65536; (void)kBytes; {access};").error
    assert what in error and "is outside the memory of this launch; CTA 0 of 1, thread 0" in error


# Whatever a kernel may begin with while the launch in front still writes is named; all else is caught.
@pytest.mark.parametrize(
    ("access", "what"),
    [
        ("LoadGlobal<float>(params.input)", "load of 4 bytes"),
        ("LoadGlobalReadOnly<float>(params.input)", "load of 4 bytes"),
        ("StoreGlobal(params.output, 1.0f)", "store of 4 bytes"),
        ("CopyAsync<16>(shared, params.input, true)", "asynchronous copy from global memory of 16 bytes"),
        ("LoadStrong<16>(params.input)", "strong load of 16 bytes"),
        ("LoadSpeculative(reinterpret_cast<const int32_t*>(params.input))", None),
        ("FetchToL2(params.input)", None),
    ],
)
def test_memory_touched_before_the_turn_is_an_error_unless_it_may_be(programs, access, what):
    end = "CopyAsyncCommit(); CopyAsyncWait<0>();"
    early, late = f"{access}; GridDependencySync(); {end}", f"GridDependencySync(); {access}; {end}"
    error = programs.run(early, overlaps=1).error
    assert (error == "") == (what is None)
    if what is not None:
        assert what in error and "comes before this launch's turn; CTA 0 of 1, thread 0" in error
    assert programs.run(late, overlaps=1).error == programs.run(early, overlaps=0).error == ""
    pre_dependency = "{input, kBytes, 0, 1}, {output, kBytes, 1, 1}"
    assert programs.run(early, overlaps=1, spans=pre_dependency).error == ""


def test_shared_memory_past_its_end_is_an_error(programs):
    error = programs.run("LoadShared<Words<16>>(shared + 4096);").error
    assert "load of 16 bytes at shared offset 4096 is outside the CTA's 4096 bytes" in error


# Pages of 16 tokens of 256 bytes, 8192 bytes apart: only the tokens belong to the launch, page by page.
PAGES = "{input, 4096, 0, 0}, {input + 8192, 4096, 0, 0}, {output, kBytes, 1, 0}"
PAGED_COPY = """
    using Map = KvThreadMap<Half, 128, 32, 1>;
    using Layout = KvLayout<Half, 128, 32>;
    const int32_t* entries = reinterpret_cast<const int32_t*>(params.output);  // the test's table, writable here
    if (ThreadIndex() == 0) {{
      StoreGlobal(params.output + 0, int32_t(0));
      StoreGlobal(params.output + 4, int32_t(1));
      StoreGlobal(params.output + 8, int32_t(32));
    }}
    SyncWarp();
    KvitCache cache = {{}};
    cache.pool[0] = {{params.input, 8192, 256, 0}};
    cache.num_pages = 2;
    cache.page_size = {page_size};
    const KvitPageTable table = {{entries, nullptr, entries + 2, 2, 1, 2}};
    PagedIterator<1, Map> tiles(cache, table, 0, LaneIndex());
    tiles.SetSequence(0, 0);
    tiles.SetTile(0);
    Sm80GmemIterator<Half, Map, Layout, 0> loader(0, LaneIndex());
    loader.SetSmem(reinterpret_cast<Half*>(shared));
    loader.Prefetch(tiles, 32, 0);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
"""


@pytest.mark.parametrize("page_size", [16, 17], ids=["true page size", "one token too many"])
def test_a_read_past_a_page_is_an_error(programs, page_size):
    outcome = programs.run(
        PAGED_COPY.format(page_size=page_size),
        shared_bytes=8192,
        spans=PAGES,
        includes='#include "cache/paged_iterator.cuh"\n#include "iterator/sm80.cuh"\n#include "layout/kv_layout.cuh"',
    )
    assert ("is outside the memory of this launch" in outcome.error) == (page_size == 17)


@pytest.mark.parametrize("scheduler", ["fibers", "threads"])
def test_lanes_at_different_collectives_are_an_error(programs, scheduler):
    error = programs.run("if (LaneIndex() < 5) SyncWarp(); else Ballot(true);", scheduler=scheduler).error
    assert "while others wait at" in error or "stopped at" in error


def test_a_barrier_that_some_threads_never_reach_is_an_error(programs):
    error = programs.run("if (ThreadIndex() != 40) SyncThreads();", threads=64).error
    assert "waits for ever at SyncThreads (63 of 64 threads arrived)" in error


def test_an_error_in_one_cta_leaves_the_backend_usable(programs):
    # Fibers of the failed CTA are abandoned where they stood; the arena they belonged to serves the CTAs after it.
    code = "if (BlockIndex() == 0 && ThreadIndex() == 3) LoadShared<float>(shared + 4096); SyncThreads();"
    assert "CTA 0 of 40, thread 3" in programs.run(code, grid=40).error


def test_the_error_reported_is_that_of_the_lowest_cta(programs):
    # CTAs run side by side: whichever fails first, the report is the same.
    code = "if (BlockIndex() >= 2) LoadShared<float>(shared + 4096);"
    assert "CTA 2 of 8" in programs.run(code, grid=8).error


def test_seeds_make_up_other_guesses(programs):
    body = """
    const auto* numbers = reinterpret_cast<const int32_t*>(params.input);
    const int32_t found = LoadSpeculative(numbers + ThreadIndex());
    GridDependencySync();
    StoreGlobal(params.output + 4 * ThreadIndex(), found - LoadGlobal<int32_t>(numbers + ThreadIndex()));
"""
    spans = "{input, kBytes, 0, 1}, {output, kBytes, 1, 0}"
    outcomes = [programs.run(body, output_bytes=128, overlaps=1, spans=spans, seed=seed) for seed in range(3)]
    found = [np.frombuffer(outcome.output, np.int32) for outcome in outcomes]
    assert len({values.tobytes() for values in found}) == 3
    for values in found:
        assert 4 < (values == 0).sum() < 28  # about half of 32
    everything = np.concatenate(found)
    assert (everything == 1).any() and (everything == -1).any() and (np.abs(everything.astype(np.int64)) > 1).any()
