"""benchmarks/latent.py: names, what they count, and that what is timed is proven first."""

import latent
import measure
import pytest
from latent import REACH_US, parse

import kvit
from kvit._cli.compare import Mismatch


@pytest.mark.parametrize("name", [*REACH_US, "8x100:16,p16,n2"])
def test_a_name_says_all(name):
    assert str(parse(name)) == name


@pytest.mark.parametrize("name", ["", "64x4096", "0x4:1", "1x4:8,q2", "1x4:8,n2,p16"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="is no cell"):
        parse(name)


def test_bytes_and_operations_are_those_of_all_rows():
    cell = parse("2x10:3,n2")
    assert cell.num_bytes == 20 * 576 * 2
    assert cell.flops == 2 * 20 * 3 * 2 * (576 + 512)  # a multiplication and an addition


@pytest.fixture(scope="module")
def memory():
    return measure.RandomMemory("bfloat16", kvit.Stream("host"), seed=1)


# Both kernels: by warp groups, of whole boxes, and by warps; sequences that do not fill their last page.
@pytest.mark.parametrize(("name", "copies"), [("2x70:3,p16", "tma"), ("1x40:5,p5,n2", "cp_async")])
def test_right_results_pass(memory, rng, name, copies):
    cell = parse(name)
    inputs = latent.Inputs(cell, memory, kvit.Stream("host"), rng)
    op = kvit.Attention(inputs.views[0], cell.heads, tokens_per_sequence=cell.new_tokens, kernel={"copies": copies})
    inputs.prove(op)


def test_a_wrong_scale_is_noticed(memory, rng):
    inputs = latent.Inputs(parse("1x40:2"), memory, kvit.Stream("host"), rng)
    with pytest.raises(Mismatch, match="sequence 0"):
        inputs.prove(kvit.Attention(inputs.views[0], 2, scale=0.2))


def test_the_host_is_no_place_to_measure(capsys):
    assert latent.main(["--device", "host"]) == 2
    assert "proves arithmetic, not speed" in capsys.readouterr().err
