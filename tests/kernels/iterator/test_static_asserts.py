"""kernels/iterator/: what would fault, overlap or be missed on a GPU does not compile, and the compiler says why."""

import pytest

HEADERS = [
    "cache/linear_iterator.cuh",
    "cache/paged_iterator.cuh",
    "iterator/combined.cuh",
    "iterator/sm70.cuh",
    "iterator/sm80.cuh",
    "layout/kv_layout.cuh",
]


def test_int4_at_head_dim_64_with_the_layout_of_the_seed_is_refused(cxx):
    # (32, 64) with Swizzle<3, 4, 3> moves 16-byte vectors of 4-bit codes by 8 bytes: "misaligned address" on a GPU.
    iterator = "Sm80GmemIterator<Uint4, KvThreadMap<Uint4, 64, 64, 4>, SmemLayout<64, 64, 32, 64, {}>, 0>"
    said = cxx.refusal(HEADERS, f"template class {iterator.format('Swizzle<3, 4, 3>')};")
    assert "splits or misaligns the accesses of the thread map" in said
    for swizzle in ("Swizzle<2, 5, 3>", "Swizzle<3, 5, 3>"):
        cxx.accept(HEADERS, f"template class {iterator.format(swizzle)};")


@pytest.mark.parametrize(
    ("declaration", "sentence"),
    [
        (
            "template class BaseGmemIterator<Half, KvThreadMap<Half, 128, 64, 4>, KvLayout<Half, 64, 64>>;",
            "must describe the same tile",
        ),
        (
            "template class BaseGmemIterator<Half, RakedThreadMap<64, 64, 16, 4>, KvLayout<Half, 64, 64>>;",
            "an access must be 1, 2, 4, 8 or 16 bytes",
        ),
        (
            "template class Sm80GmemIterator<Half, RakedThreadMap<8, 64, 1, 4>, SmemLayout<64, 8, 8, 8, Identity>, 0>;",
            "an asynchronous copy moves 4, 8 or 16 bytes",
        ),
        (
            # The parameters' default map gives a warp 32 tokens where the data's gives it 16.
            """
            using Map = KvThreadMap<uint8_t, 128, 64, 4>;
            using ParamMap = RakedThreadMap<2, 64, 2, 4>;
            using Combined = CombinedIterator<Sm80GmemIterator<uint8_t, Map, KvLayout<uint8_t, 128, 64>, 0>,
                                              Sm80GmemIterator<Half, ParamMap, ParamLayout<64>, 2>>;
            template class CombinedIterator<Sm80GmemIterator<uint8_t, Map, KvLayout<uint8_t, 128, 64>, 0>,
                                            Sm80GmemIterator<Half, ParamMap, ParamLayout<64>, 2>>;
            """,
            "data and parameters must deal the same tokens to each warp",
        ),
        (
            """
            using Map = KvThreadMap<Half, 128, 64, 4>;
            const char* Ask(const PagedIterator<1u, Map>& tiles) { return tiles.OffsetPtr<1>(0, 0); }
            """,
            "without the pool that the copy asks for",
        ),
        (
            """
            using Map = KvThreadMap<Half, 128, 64, 4>;
            const char* Ask(const LinearIterator<2u, Map>& tiles) { return tiles.OffsetPtr<0>(0, 0); }
            """,
            "without the pool that the copy asks for",
        ),
        (
            """
            using Reader = BaseSmemIterator<Half, KvLayout<Half, 128, 64>>;
            Array<Half, 16> Read(const Reader& reader) { return reader.Load<16>(0, 0); }
            """,
            "this layout splits or misaligns a vector of N elements",
        ),
    ],
    ids=["tiles", "32-byte-access", "2-byte-copy", "bands", "paged-pool", "linear-pool", "reader"],
)
def test_a_bad_combination_is_refused_with_a_sentence(cxx, declaration, sentence):
    assert sentence in cxx.refusal(HEADERS, declaration)
