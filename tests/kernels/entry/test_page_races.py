"""Pages that are rewritten where they lie, under ThreadSanitizer: a byte is read before anybody writes over it."""

import numpy as np
import pytest

from support.host_program import HostPrograms

# A page of 130 rows, one head, head_dim 64: a CTA fills it, then takes it in two batches of rows. float8, because its
# rows need no shuffles: they would take minutes on 256 threads of the sanitizer, and order nothing that matters here.
REQUANTISE_INCLUDES = """
#include "entry/requantise.cuh"
static float scale = 0.5f;
"""
REQUANTISE = """
    using Kernel = RequantiseKernel<Half, Plain, Float8E4M3>;
    static_assert(Kernel::kThreads == kThreads && Kernel::kSharedBytes <= kSharedBytes, "the case must fit the kernel");
    constexpr int kPage = 130 * 128;
    char* page = params.output;
    for (int byte = 2 * ThreadIndex(); byte < kPage; byte += 2 * kThreads) {
      // Finite f16 without a pattern, so that no two rows are alike.
      StoreGlobal(page + byte, uint16_t((uint32_t(byte) * 2654435761u) >> 18));
    }
    SyncThreads();
    KvitRequantiseParams p = {};
    p.source.pool[0] = {params.output, kPage, 128, 128};
    p.target.pool[0] = {params.output, kPage, 64, 64};
    p.target.pool[2] = {&scale, 0, 0, 0};
    p.source.num_pages = p.target.num_pages = p.count = 1;
    p.source.page_size = p.target.page_size = 130;
    p.source.num_kv_heads = p.target.num_kv_heads = 1;
    p.source.k_dim = p.source.v_dim = p.target.k_dim = p.target.v_dim = 64;
    p.parts = 1;
    p.in_order = IN_ORDER;
    Kernel::Run(p, shared);
"""

COPY = """
    using Kernel = CopyPagesKernel<16>;
    static_assert(Kernel::kThreads == kThreads, "the case must fit the kernel");
    KvitCopyPagesParams p = {};
    // Pages of 40 tokens and one head in rows of 128 bytes: more than a batch of a CTA's threads.
    p.cache.pool[0] = {params.output, 40 * 128, 128, 128};
    p.cache.num_pages = 5;
    p.cache.page_size = 40;
    p.cache.num_kv_heads = 1;
    p.cache.k_dim = p.cache.v_dim = 64;
    // CTA 0 fills pages 0 to 2, which its chain turns round; CTA 1 pages 3 and 4.
    for (int byte = 4 * ThreadIndex(); byte < 5 * 40 * 128; byte += 4 * kThreads) {
      const bool is_mine = (byte / (40 * 128) < 3) == (BlockIndex() == 0);
      if (is_mine) StoreGlobal(params.output + byte, uint32_t(byte));
    }
    SyncThreads();
    p.source = source;
    p.target = target;
    p.chains = chains;
    p.row_bytes[0] = 128;
    p.count = 4;
    p.num_chains = 2;
    Kernel::Run(p, shared);
"""
COPY_SPANS = """
    {output, kBytes, 1, 0}, {source, sizeof source, 0, 0}, {target, sizeof target, 0, 0},
    {chains, sizeof chains, 0, 0}
"""
COPY_INCLUDES = """
#include "entry/copy_pages.cuh"
static const int32_t source[] = {1, 2, 0, 4}, target[] = {0, 1, 2, 3}, chains[] = {0, 3, 4};
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("pages"))


def requantise(programs, in_order, **options):
    return programs.run(
        REQUANTISE.replace("IN_ORDER", str(int(in_order))),
        threads=256,
        output_bytes=130 * 128,
        spans="{output, kBytes, 1, 0}, {&scale, sizeof scale, 0, 0}",
        includes=REQUANTISE_INCLUDES,
        **options,
    )


def test_requantising_where_pages_lie_has_no_data_race(programs):
    sanitized = requantise(programs, True, scheduler="threads", sanitize=True)
    assert not sanitized.race and not sanitized.error
    assert sanitized.output == requantise(programs, True).output != b""


def test_the_same_out_of_order_is_a_race_that_the_sanitizer_sees(programs):
    assert requantise(programs, False, scheduler="threads", sanitize=True).race


def copy(programs, **options):
    return programs.run(
        COPY,
        threads=256,
        grid=2,
        output_bytes=5 * 40 * 128,
        spans=COPY_SPANS,
        includes=COPY_INCLUDES,
        **options,
    )


def test_turning_pages_round_has_no_data_race(programs):
    sanitized = copy(programs, scheduler="threads", sanitize=True)
    assert not sanitized.race and not sanitized.error
    pages = np.arange(0, 5 * 40 * 128, 4, dtype=np.uint32).reshape(5, -1)  # what the kernel fills them with
    assert sanitized.output == pages[[1, 2, 0, 4, 4]].tobytes() == copy(programs).output
