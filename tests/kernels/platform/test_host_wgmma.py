"""Products of warp groups on the host backend: what lies where, when they land, and votes of a group."""

import numpy as np
import pytest

from support.host_program import HostPrograms

# One warp group: d [64, 64] = a [64, 16] b, of small whole numbers, so that sums are exact. a [row][k] =
# row % 7 - 3 + k, b [n][k], or [k][n] where it is transposed, = 3 n - 5 k modulo 11. d goes out as float32, row by row.
PRODUCT = """
    const auto fill = [&](char* base, int line, int place, float x) {{
      const int offset = line * 128 + place * 2;
      StoreShared(base + (offset ^ (offset >> 7 & 7) << 4), FromFloat<Half>(x));
    }};
    char *const a = shared, *const b = shared + 8192;
    const auto of_a = [](int row, int k) {{ return float(row % 7 - 3 + k); }};
    for (int i = ThreadIndex(); i < 64 * 16; i += 128) {{
      const int m = i / 16, k = i % 16;
      fill(a, m, k, of_a(m, k));
      const float x = float((3 * m + 110 - 5 * k) % 11);
      {transposed} ? fill(b, k, m, x) : fill(b, m, k, x);
    }}
    SyncThreads();
    float d[32];
    for (float& x : d) x = 100.0f;
    const int row = WarpIndex() * 16 + LaneIndex() / 4, column = LaneIndex() % 4 * 2;
    uint32_t in_registers[4];
    for (int i = 0; i < 4; ++i) {{
      const int m = row + i % 2 * 8, k = column + i / 2 * 8;
      in_registers[i] = Pack2<Half>(of_a(m, k), of_a(m, k + 1));
    }}
    const SharedMatrix left = {{a, 0, 16, 1024}}, right = {{b, 0, {transposed} ? 8192 : 16, 1024}};
    WgmmaFence();
    IssueWgmma<Half, {transposed}>(d, {left}, right, {accumulates});
    WgmmaCommit();
    {before}
    WgmmaWait<{behind}>();
    for (int i = 0; i < 32; ++i) {{
      const int m = row + i / 2 % 2 * 8, n = i / 4 * 8 + column + i % 2;
      StoreGlobal(params.output + (m * 64 + n) * 4, d[i]);
    }}
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("wgmma"))


def run(programs, transposed="false", left="left", accumulates="false", before="", behind=0, **options):
    body = PRODUCT.format(transposed=transposed, left=left, accumulates=accumulates, before=before, behind=behind)
    options = {"threads": 128, "shared_bytes": 16384, "output_bytes": 64 * 64 * 4, **options}
    return programs.run(body, memory_bytes=16384, **options)


def product():
    m, n, k = np.arange(64), np.arange(64), np.arange(16)
    return (m[:, None] % 7 - 3.0 + k) @ ((3 * n[:, None] + 110 - 5 * k) % 11).T.astype(float)


@pytest.mark.parametrize("transposed", ["false", "true"])
@pytest.mark.parametrize("left", ["left", "in_registers"])
@pytest.mark.parametrize("accumulates", ["false", "true"])
def test_a_product_is_that_of_its_operands(programs, transposed, left, accumulates):
    outcome = run(programs, transposed, left, accumulates)
    assert not outcome.error
    d = np.frombuffer(outcome.output, np.float32).reshape(64, 64)
    np.testing.assert_array_equal(d, product() + (100 if accumulates == "true" else 0))


def test_operands_in_shared_memory_are_read_when_the_product_lands(programs):
    # What a kernel overwrites too early, hardware may or may not have read: here it has not.
    change = "SyncThreads(); if (ThreadIndex() == 0) fill(b, 1, 0, 0.0f); SyncThreads();"
    d = np.frombuffer(run(programs, before=change).output, np.float32).reshape(64, 64)
    changed = d != product()
    assert changed[:, 1].any() and not np.delete(changed, 1, axis=1).any()


def test_who_does_not_wait_gets_nan_and_an_error(programs):
    outcome = run(programs, behind=1)
    assert "products of a warp group that nobody waited for" in outcome.error


def test_a_group_votes_for_itself(programs):
    # Two groups; one thread of the second says yes.
    body = """
      for (int i = 0; i < 3; ++i) {
        const bool any = SyncGroupOr(ThreadIndex() == 128 + 37 && i == 1);
        StoreGlobal(params.output + (i * 256 + ThreadIndex()), char(any));
      }
    """
    for scheduler in ("fibers", "threads"):
        outcome = programs.run(body, threads=256, shared_bytes=1024, output_bytes=768, scheduler=scheduler)
        assert not outcome.error
        expected = np.zeros((3, 256), np.uint8)
        expected[1, 128:] = 1
        np.testing.assert_array_equal(np.frombuffer(outcome.output, np.uint8).reshape(3, 256), expected)
