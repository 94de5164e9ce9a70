"""kvit.iterators.probe_own: maps and layouts of numbers and of C++ text, compiled and compared with their models."""

import shutil

import numpy as np
import pytest

from kvit.errors import DeviceError, HostBackendError, LayoutError, ShapeError
from kvit.iterators import (
    RakedThreadMap,
    SmemLayout,
    Swizzle,
    kv_layout,
    kv_thread_map,
    own_compiler,
    own_probe,
    probe_own,
)

THREADS = kv_thread_map(16, 64, 64, 4)
PADDED = """
struct Padded {
  static constexpr int kS = 64, kC = 64, kSize = 64 * 72;
  static constexpr KVIT_HD int Index(int s, int c, int offset = 0) { return s * 72 + c + offset; }
  static constexpr KVIT_HD bool KeepsRuns(int elements) { return 8 % elements == 0; }
};
"""
# Bands of tokens go to the warps in reverse: all else as RakedThreadMap has it.
REVERSED = """
struct Reversed : RakedThreadMap<64, 64, 8, 4> {
  using Base = RakedThreadMap<64, 64, 8, 4>;
  static constexpr KVIT_HD int BandBegin(int warp) { return Base::BandBegin(3 - warp); }
  static constexpr KVIT_HD Coord Offset(int warp, int lane) { return Base::Offset(3 - warp, lane); }
};
"""


def padded(s, c):
    return s * 72 + c


class Reversed:
    access_c = 8

    def coordinates(self):
        return [x.reshape(4, 32, -1)[::-1].reshape(128, -1) for x in THREADS.coordinates()]


@pytest.fixture(autouse=True)
def needs_nvcc_on_a_gpu(request):
    if request.node.get_closest_marker("gpu") and shutil.which("nvcc") is None:
        pytest.skip("nvcc is missing")


# kvit's own layout, other numbers in a ring of three, and a map whose lanes reach past row and tile; each by both ways
# of copying. One byte an access, which asynchronous copies do not make, is through registers by default.
@pytest.mark.parametrize(
    ("bits", "layout", "threads", "options"),
    [
        (16, kv_layout(16, 64, 64), THREADS, {"loader": "sm80"}),
        (8, SmemLayout(64, 64, 32, 64, Swizzle(2, 4, 2)), RakedThreadMap(64, 64, 16, 2), {"stages": 3}),
        (4, kv_layout(4, 64, 64), kv_thread_map(4, 64, 64, 4), {"loader": "sm70"}),
        (32, SmemLayout(40, 96, 8, 32, Swizzle(3, 2, 3)), RakedThreadMap(96, 40, 4, 2, 32), {"loader": "sm70"}),
        (8, SmemLayout(8, 32, 8, 32), RakedThreadMap(32, 8, 1, 1, 32), {}),
    ],
    ids=["bf16", "ring", "int4", "partial", "bytes"],
)
def test_types_of_numbers_do_what_their_models_say(device, bits, layout, threads, options):
    found = probe_own(layout, threads, bits, device=device, **options)
    assert found.is_same and found.differences == (), found
    np.testing.assert_array_equal(found.shared, found.expected_shared)
    np.testing.assert_array_equal(found.fragments, found.expected_fragments)
    assert found.shared.size == layout.size * bits // 8 * options.get("stages", 1)
    assert str(found).endswith("of fragments: all as the model says")


@pytest.mark.parametrize("loader", ["sm70", "sm80"])
def test_types_of_text_do_what_their_models_say(device, loader):
    found = probe_own(
        padded, Reversed(), 16, layout_type="Padded", map_type="Reversed", definitions=PADDED + REVERSED,
        loader=loader, device=device,
    )  # fmt: skip
    assert found.is_same, found
    rows = np.arange(64 * 128, dtype=np.uint32).astype(np.uint8).reshape(64, 128)
    given = probe_own(padded, THREADS, 16, layout_type="Padded", definitions=PADDED, rows=rows, device=device)
    assert given.is_same
    np.testing.assert_array_equal(given.shared.reshape(64, 144)[:, :128], rows)  # the pad behind each row is poison
    assert (given.shared.reshape(64, 144)[:, 128:] == 0xFF).all()


def test_a_layout_that_is_not_its_model_is_told_byte_by_byte():
    other = PADDED.replace("+ c +", "+ (c ^ s % 2 * 8) +")
    found = probe_own(padded, THREADS, 16, layout_type="Padded", definitions=other)
    assert not found.is_same and len(found.differences) == 8
    assert found.differences[0].startswith("shared memory, byte 144 (element 72 of stage 0)")
    assert "of token 1, channel 0" in found.differences[0]
    np.testing.assert_array_equal(found.fragments, found.expected_fragments)  # what goes in comes out again
    assert str(found).count("\n") == 8


def test_a_map_that_is_not_its_model_is_told_in_fragments():
    found = probe_own(kv_layout(16, 64, 64), THREADS, 16, map_type="Reversed", definitions=REVERSED)
    np.testing.assert_array_equal(found.shared, found.expected_shared)  # every element is still moved once
    assert found.differences[0].startswith("fragment of warp 0, lane 0, byte 0 (access 0, in the model from token 0")


def test_sizes_of_types_and_models_must_agree():
    with pytest.raises(LayoutError, match="the compiled map has 64 threads and its model 128"):
        probe_own(kv_layout(16, 64, 64), THREADS, 16, map_type="RakedThreadMap<64, 64, 8, 2>")
    smaller = PADDED.replace("* 72;", "* 64;").replace("s * 72", "s * 64")
    with pytest.raises(LayoutError, match="the compiled layout has 4096 elements, and its model puts one at 4599"):
        probe_own(padded, THREADS, 16, layout_type="Padded", definitions=smaller)


@pytest.mark.parametrize(
    ("layout", "options", "words"),
    [
        (SmemLayout(64, 64, 8, 64, Swizzle(3, 2, 4)), {}, "this swizzle or atom splits or misaligns the accesses"),
        (padded, {"layout_type": "Padded", "definitions": "struct Padded {"}, "do not compile:\n.*error"),
        (padded, {"layout_type": "Nowhere"}, "Nowhere"),
        (kv_layout(16, 64, 32), {}, "must describe the same tile"),
    ],
    ids=["torn", "unfinished", "unknown", "tile"],
)
def test_what_does_not_compile_comes_with_the_compilers_words(layout, options, words):
    threads = kv_thread_map(16, 64, 64, 4) if layout != kv_layout(16, 64, 32) else RakedThreadMap(64, 16, 8, 1)
    with pytest.raises(LayoutError, match=words):
        probe_own(layout, threads, 16, **options)


def test_a_type_is_asked_for_where_a_model_has_none():
    with pytest.raises(
        LayoutError, match="layout is a function, of which no C.. type is known; name yours in layout_t"
    ):
        probe_own(padded, THREADS, 16)
    with pytest.raises(
        LayoutError, match="thread_map is a Reversed, of which .* name yours in map_type, and define it"
    ):
        probe_own(kv_layout(16, 64, 64), Reversed(), 16)


def test_an_access_outside_the_tile_or_its_memory_names_the_thread():
    beyond = PADDED.replace("c + offset;", "c * 8 + offset;")
    with pytest.raises(HostBackendError, match=r"is outside the CTA's 9216 bytes; CTA 0 of 1, thread \d+"):
        probe_own(padded, THREADS, 16, layout_type="Padded", definitions=beyond)


def test_a_loop_without_an_end_is_ended(monkeypatch):
    monkeypatch.setattr(own_probe, "_SECONDS", 2)
    endless = PADDED.replace("{ return s * 72", "{ for (volatile int i = 0; i < 1; i = 0) {} return s * 72")
    endless = endless.replace("static constexpr KVIT_HD int Index", "static KVIT_HD int Index")
    with pytest.raises(HostBackendError, match="the probe did not end within 2 seconds; look for a loop"):
        probe_own(padded, THREADS, 16, layout_type="Padded", definitions=endless)


def test_wrong_arguments_are_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(own_compiler, "build", None)
    layout = kv_layout(16, 64, 64)
    with pytest.raises(ShapeError, match='loader is .sm90.; give "sm70" or "sm80"'):
        probe_own(layout, THREADS, 16, loader="sm90")
    with pytest.raises(ShapeError, match=r"rows are uint8 \[3, 128\]; the map moves"):
        probe_own(layout, THREADS, 16, rows=np.zeros((3, 128), np.uint8))
    with pytest.raises(DeviceError, match="tpu"):
        probe_own(layout, THREADS, 16, device="tpu")
