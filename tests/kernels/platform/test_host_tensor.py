"""Tensor copies on the host backend: boxes land swizzled when their barrier is waited for, and mistakes are caught."""

import numpy as np
import pytest

from support.host_program import HostPrograms

# One warp copies a box of 8 tokens of 64 bytes, from pages of 16 tokens with one head, and hands it on as it lies.
COPY = """
    KvitTensorMap map = {{}};
    const KvitHostTensorMap host = {{
        params.input, {{64, 16, 1, 1, 4}}, {{64, 64, 1024, 1024}}, 64, 8, KVIT_HOST_TENSOR_MAP}};
    memcpy(map.bytes, &host, sizeof(host));
    auto* barrier = reinterpret_cast<uint64_t*>(shared + 2048);
    if (LaneIndex() == 0) InitBarrier(barrier, 1);
    SyncWarp();
    if (LaneIndex() == 0) {{
      ArriveExpecting(barrier, {expected});
      TmaLoad(shared, map, {{0, {token}, 0, 0, {page}}}, barrier);
    }}
    SyncWarp();
    {wait}
    StoreGlobal(params.output + 16 * LaneIndex(), LoadShared<Words<16>>(shared + 16 * LaneIndex()));
"""
WAIT = "WaitBarrier(barrier, 0);"
INCLUDES = "#include <string.h>"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("tensor"))


def run(programs, wait=WAIT, expected=512, token=8, page=1, **options):
    body = COPY.format(wait=wait, expected=expected, token=token, page=page)
    return programs.run(body, output_bytes=512, includes=INCLUDES, **options)


def swizzled(rows):
    """Rows of 64 bytes as SWIZZLE_64B leaves them: vector 5..4 of an address ^= its line 8..7."""
    tile = np.zeros(512, np.uint8)
    for at in range(0, 512, 16):
        tile[at ^ (at // 128 % 4 * 16) :][:16] = rows[at : at + 16]
    return tile.tobytes()


@pytest.mark.parametrize("scheduler", ["fibers", "threads"])
def test_a_box_lands_swizzled_at_the_wait(programs, scheduler):
    source = np.arange(65536).astype(np.uint8)[1024 + 8 * 64 :][:512]  # page 1, token 8
    assert run(programs, scheduler=scheduler).output == swizzled(source)


def test_without_the_wait_a_box_is_poison_and_an_error(programs):
    assert "nobody waited for" in run(programs, wait="").error


@pytest.mark.parametrize("page", [-1, 4, 2**31 - 1], ids=str)
def test_a_page_that_the_map_does_not_have_is_zeros_and_reads_nothing(programs, page):
    assert run(programs, page=page).output == bytes(512)


def test_rows_past_the_page_are_zeros(programs):
    # Tokens 12..15 are there, 16..19 are not: the map's axis of tokens ends with the page.
    source = np.arange(65536).astype(np.uint8)[1024 + 12 * 64 :][:512].copy()
    source[4 * 64 :] = 0
    assert run(programs, token=12).output == swizzled(source)


def test_memory_outside_the_launch_is_an_error(programs):
    words = run(programs, spans="{input, 1024 + 9 * 64, 0, 0}, {output, kBytes, 1, 0}").error
    assert "tensor copy from global memory" in words and "outside the memory of this launch" in words


def test_no_race_between_a_box_and_its_readers(programs):
    outcome = run(programs, scheduler="threads", sanitize=True)
    assert not outcome.race and not outcome.error
