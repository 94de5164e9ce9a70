"""What decode's compiled loop does per element of K and V: matrix instructions and moves of bits, and no arithmetic."""

import pytest

from kvit import codecs, dtypes
from kvit.selection import registry
from support.sass import ARITHMETIC, MATRIX, count, disassemble, matrix_loop, parse

# Those of sm_75 load through registers, with steps of other lengths for 128 channels than for 64: nothing to compare.
CUBINS = [
    arch
    for arch in registry.installed().archs
    if arch.startswith("sm_") and any(arch in entry.archs for entry in registry.candidates("decode", copies="cp_async"))
]


def is_scaled(entry):
    dtype = dtypes.dtype_of(entry.axes["dtype"])
    return all(codec.params for codec in codecs.pair_of_key(entry.axes["kv"], dtype))


def twins(arch):
    """Pairs of quantised decode kernels that differ in head_dim alone, 64 and 128, down to the tokens of a step.

    Of bfloat16: float16 differs before the loop and after it, where queries and outputs are converted.
    """
    built = registry.candidates("decode", dtype="bf16")
    entries = [entry for entry in built if arch in entry.archs and is_scaled(entry)]
    wide = {key_of(entry): entry for entry in entries if entry.axes["head_dim"] == 128}
    return [(entry, wide[key_of(entry)]) for entry in entries if entry.axes["head_dim"] == 64 and key_of(entry) in wide]


def key_of(entry):
    others = tuple((axis, value) for axis, value in entry.axes.items() if axis != "head_dim")
    return others, entry.threads, entry.facts["tile_tokens"], entry.facts["rows"]


def loop_of(entry, arch):
    return matrix_loop(disassemble(entry.file(arch))[entry.symbol])


@pytest.mark.parametrize("arch", CUBINS)
def test_the_common_quantised_pairs_have_twins_to_compare(arch):
    assert {"i8", "i4", "i8_i4", "e4m3"} <= {narrow.axes["kv"] for narrow, _ in twins(arch)}


# If an element were scaled, converted or offset by itself, 128 channels would take twice the arithmetic of 64. They
# take the same: all of it is for scores and weights, of which there are as many. What doubles is HMMA.
@pytest.mark.parametrize(
    ("narrow", "wide", "arch"),
    [
        pytest.param(narrow, wide, arch, id=f"{arch}-{narrow.symbol.removeprefix('kvit_decode__')}")
        for arch in CUBINS
        for narrow, wide in twins(arch)
    ],
)
def test_no_element_of_a_quantised_cache_is_scaled_by_itself(narrow, wide, arch):
    loops = [loop_of(entry, arch) for entry in (narrow, wide)]
    warps = narrow.threads // 32
    blocks = narrow.facts["tile_tokens"] // warps // 16  # of 16 tokens, in a warp's step
    row_tiles = narrow.facts["rows"] // 8
    products = [count(loop.always, MATRIX) for loop in loops]
    # K and V, 16 channels to an instruction: the loop that was found is the whole step.
    assert products[1] - products[0] == blocks * row_tiles * 2 * (128 - 64) // 16
    arithmetic = [{name: loop.always[name] for name in ARITHMETIC} for loop in loops]
    assert arithmetic[0] == arithmetic[1]
    # Behind branches two things grow, neither with the tokens of a step: outputs are rescaled when a weight is too
    # large, a multiply for each that a lane holds; and a head's queries are taken when it begins, up to ten operations
    # for each (a maximum, products, a rounding, conversions and a sum). Scaling the K or V of 32 tokens is four more.
    rare = [count(loop.sometimes, ARITHMETIC) for loop in loops]
    assert 0 < rare[1] - rare[0] <= (11 + 15 * may_transform(narrow)) * held(narrow)


def may_transform(entry):
    """Whether queries may pass through a Hadamard transform when a head begins: seven stages of twice as many numbers,
    and not six, an addition each, which two stages negate or not, and a product at the end. 15 operations more for each
    output more that a lane holds, since it holds as many queries."""
    return entry.axes["kv"].partition("_")[0] in ("i8", "i4")


def held(entry):
    """How many more outputs a lane holds of 128 channels than of 64."""
    return entry.facts["rows"] // 8 * (128 - 64) // 16 * 4


def test_what_a_branch_may_skip_does_not_grow_with_the_tokens_of_a_step():
    arch = "sm_90"
    if arch not in CUBINS:
        pytest.skip("needs kernels for sm_90")
    growths = {}  # by tokens of a warp's step
    for narrow, wide in twins(arch):
        if not may_transform(narrow):
            continue  # queries take less there, and steps have one length
        rare = [count(loop_of(entry, arch).sometimes, ARITHMETIC) for entry in (narrow, wide)]
        tokens = narrow.facts["tile_tokens"] // (narrow.threads // 32)
        growths.setdefault(tokens, []).append((rare[1] - rare[0]) / held(narrow))
    # Twice the tokens: were an element of K, or of V, scaled behind a branch, the longer step would do it 4 times more
    # often for each output that a lane holds.
    short, long = sorted(growths)
    assert long == 2 * short
    assert max(growths[long]) < min(growths[short]) + 4


# A loop as nvdisasm prints one: a guarded exit, a branch over two multiplies, one of which only looks like arithmetic.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0020*/                   FMUL R0, R0, R2 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   FMUL R4, R4, R3 ;
        /*0050*/                   HFMA2.MMA R5, -RZ, RZ, 0, 0 ;
        /*0060*/                   BRA.DIV UR4, `(.L_x_3) ;
.L_x_2:
        /*0070*/               @P2 FADD R0, R0, R2 ;
        /*0080*/               @P1 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   MUFU.EX2 R6, R6 ;
        /*00b0*/                   BRA `(.L_x_2) ;
"""


def test_a_loop_is_told_apart_into_what_always_runs_and_what_a_branch_may_skip():
    loop = matrix_loop(parse(LISTING))
    assert loop.always == {"HMMA": 1, "FMUL": 1, "BRA": 2, "FADD": 1}  # a guard is no branch: it takes its turn
    assert loop.sometimes == {"FMUL": 1, "BRA": 2, "MUFU": 1}
    assert count(loop.always, ARITHMETIC) == 2 and count(loop.sometimes, ARITHMETIC) == 2


def test_code_without_a_loop_around_its_products_is_not_taken_for_one():
    with pytest.raises(AssertionError, match="no loop"):
        matrix_loop(parse(LISTING.replace("@P1 BRA `(.L_x_1)", "@P1 BRA `(.L_x_2)")))
