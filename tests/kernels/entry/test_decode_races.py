"""Decode, and prefill by warps, under ThreadSanitizer: what their barriers do not order, nobody may share."""

import pytest

from support.host_program import HostPrograms

INCLUDES = """
#include <string.h>
#include "entry/decode.cuh"
#include "entry/prefill.cuh"

// Three sequences: an empty one, one that two CTAs share, and one that a CTA finishes alone, so that every path of the
// combination runs; of splits too: three of a tile each, of which one CTA joins the first two. Pages out of order, the
// last one of each sequence part full.
static int32_t page_table[3][5] = {{0, 0, 0, 0, 0}, {3, 0, 2, 5, 6}, {4, 1, 0, 0, 0}};
static int32_t lengths[3] = {0, 301, 70};
static KvitFault fault;
alignas(16) static char workspace[kvit::kWorkspaceHeadBytes + 2 * 32 * 8 * 66 * 4];

static KvitTensorMap MapOf(const char* base) {
  const KvitHostTensorMap host = {
      base, {128, 64, 1, 1, 7}, {128, 128, 64 * 128, 64 * 128}, 128, 32, KVIT_HOST_TENSOR_MAP};
  KvitTensorMap map = {};
  memcpy(map.bytes, &host, sizeof(host));
  return map;
}
"""

# Tiles of 128 tokens in decode, of 64 in prefill.
DECODE = "DecodeKernel<{dtype}, Plain, Plain, Dims<64>, 8, {copies}, PlainVariant, TileShape<4, 32, 2, 2>>"
PREFILL = "PrefillKernel<{dtype}, Plain, Plain, Dims<64>, {rows}, {copies}, PlainVariant>"
BODY = """
    using Kernel = KERNEL;
    static_assert(Kernel::kThreads == kThreads && Kernel::kSharedBytes <= kSharedBytes, "the case must fit the kernel");
    KvitDecodeParams p = {};
    p.cache.pool[0] = {params.input, 64 * 128, 128, 0};
    p.cache.pool[1] = {params.input + 7 * 64 * 128, 64 * 128, 128, 0};
    p.cache.num_pages = 7;
    p.cache.page_size = 64;
    p.cache.num_kv_heads = 1;
    p.cache.k_dim = p.cache.v_dim = 64;
    p.table = {&page_table[0][0], nullptr, lengths, 5, 3, 5};
    p.tokens = {nullptr, 2, 6};
    p.q = {params.input, 512, 128};
    p.out = {params.output, 512, 128};
    p.fault = &fault;
    p.workspace = workspace;
    p.scale = 0.125f;
    p.num_query_heads = 4;
    p.causal = 1;
    p.split_tiles = SPLIT;
    p.partitions = 1;
    p.box_tokens = 32;
    p.page_size = KvitDivisorOf(64);
    p.group = KvitDivisorOf(4);
    p.k_map = MapOf(params.input);
    p.v_map = MapOf(params.input + 7 * 64 * 128);
    Kernel::Run(p, shared);
"""

SPANS = """
    {input, kBytes, 0, 0}, {output, kBytes, 1, 0}, {page_table, sizeof page_table, 0, 0},
    {lengths, sizeof lengths, 0, 0}, {&fault, sizeof fault, 1, 0}, 
    {workspace, sizeof workspace, 1, 0}, {workspace, kvit::kWorkspaceHeadBytes, 1, 1}
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("decode"))


def run(programs, body, **options):
    return programs.run(
        body,
        threads=128,
        grid=2,
        shared_bytes=96 * 1024,
        memory_bytes=2 * 7 * 64 * 128,
        output_bytes=6 * 512,
        spans=SPANS,
        includes=INCLUDES,
        **options,
    )


# bfloat16 through registers has parameters of its own in shared memory.
@pytest.mark.parametrize("split_tiles", [0, 1])
@pytest.mark.parametrize(
    ("copies", "dtype"),
    [("CpAsyncCopies", "Half"), ("RegisterCopies", "Half"), ("RegisterCopies", "Bfloat16"), ("TmaCopies", "Half")],
)
def test_decode_has_no_data_race_and_the_same_bits_on_either_scheduler(programs, copies, dtype, split_tiles):
    assert_no_race(programs, DECODE.format(copies=copies, dtype=dtype), split_tiles)


# Through registers all threads meet twice a tile: when they have left the slot, and when the next tile is in it.
@pytest.mark.parametrize(("copies", "rows"), [("CpAsyncCopies", 128), ("RegisterCopies", 64)])
def test_prefill_has_no_data_race_and_the_same_bits_on_either_scheduler(programs, copies, rows):
    assert_no_race(programs, PREFILL.format(copies=copies, rows=rows, dtype="Bfloat16"), 0)


def assert_no_race(programs, kernel, split_tiles):
    body = BODY.replace("KERNEL", kernel).replace("SPLIT", str(split_tiles))
    sanitized = run(programs, body, scheduler="threads", sanitize=True)
    assert not sanitized.race and not sanitized.error
    assert sanitized.output == run(programs, body).output != b""
