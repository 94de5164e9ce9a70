"""benchmarks/prefill.py and prompts.py: names, what they count, and that what is timed is proven first."""

import measure
import peers
import prefill
import prompts
import pytest
from prompts import FAMILIES, parse, select

import kvit
from kvit._cli.compare import Mismatch


@pytest.mark.parametrize("name", [name for names in FAMILIES.values() for name in names])
def test_a_name_says_all(name):
    assert str(parse(name)) == name.replace(",bfloat16", "")


def test_one_prompt_needs_no_count():
    assert parse("4096") == parse("1x4096")


@pytest.mark.parametrize("name", ["", "1x0", "8@4", "0x4", "1x4:8", "1x4,d", "1x4,int7"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"no group|new tokens|heads are|or a codec"):
        parse(name)


def test_operations_are_those_over_what_is_seen():
    # 4 per channel: a multiplication and an addition in each product.
    assert parse("1x4096,full").flops == 4 * 4096 * 4096 * 32 * 128
    assert parse("1x4096").flops == parse("1x4096,full").flops // 2
    assert parse("2x8+3x1@5:4/2,d64").flops == 4 * (2 * (64 - 32) + 3 * 5) * 4 * 64


def test_cells_are_picked_by_name_pattern_and_family():
    assert [str(cell) for cell in select(["1x4096", "*p16", "1x4096"])] == ["1x4096", "1x8192,p16"]
    assert len(select([])) == len({str(cell) for cell in select(list(FAMILIES))})


@pytest.fixture(scope="module")
def memory():
    return measure.RandomMemory("bfloat16", kvit.Stream("host"), seed=1)


@pytest.mark.parametrize("name", ["1x40+2x1@30:4/2,d64", "8@70:4/2,d64,p5", "2x33:4/2,d64,int8", "1x40:4/2,d64,full"])
def test_right_results_pass(memory, rng, name):
    inputs = prefill.Inputs(parse(name), memory, kvit.Stream("host"), rng)
    op = kvit.Attention(inputs.view, 4, causal=inputs.prompt.causal, tokens_per_sequence=max(inputs.prompt.counts))
    inputs.prove(op)


def test_a_wrong_scale_is_noticed(memory, rng):
    inputs = prefill.Inputs(parse("1x40:4/2,d64"), memory, kvit.Stream("host"), rng)
    with pytest.raises(Mismatch, match="token"):
        inputs.prove(kvit.Attention(inputs.view, 4, scale=0.2, tokens_per_sequence=40))


def test_the_host_is_no_place_to_measure(capsys):
    assert prefill.main(["--device", "host"]) == 2
    assert "proves arithmetic, not speed" in capsys.readouterr().err


def test_what_must_be_reached_is_held_against_the_cell():
    result = prefill.Result(parse("1x4096"), parse("1x4096").flops / 352.5e6, "kernel")
    assert result.reached == pytest.approx(0.5)
    assert prefill.Result(parse("1x2048+128x1@2048"), 560.0, "kernel").reached == pytest.approx(0.5)
    assert set(prompts.REACH_US) == set(FAMILIES["mixed"])
    assert "50.0%" in prefill.table([result])


def test_a_peer_stands_beside_what_it_was_measured_with_and_the_table_is_as_before_without():
    cells = [parse("1x4096"), parse("2x2048+128x1@2048")]
    results = [
        prefill.Result(cells[0], 300.0, "kernel", 200.0),
        prefill.Result(cells[1], 400.0, "kernel", "ValueError"),
    ]
    lines = prefill.table(results).splitlines()
    assert "FA3, us" in lines[0] and "200.0" in lines[1] and "-" in lines[2].split()
    assert "FA3" not in prefill.table([prefill.Result(cells[0], 300.0, "kernel")])


def test_a_peer_that_is_not_there_says_why(memory, rng):
    # No CUDA here, or no package, or a batch that it does not do: always words, never an end of the run.
    inputs = prefill.Inputs(parse("1x40+2x1@30:4/2,d64"), memory, kvit.Stream("host"), rng)
    assert ": " in measure.ready(peers.fa3_prompts, inputs)
