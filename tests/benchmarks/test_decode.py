"""benchmarks/decode.py, inputs.py, arena.py: what is timed is proven first, and wrong arguments are told."""

import json
import subprocess
import sys

import decode
import measure
import numpy as np
import pytest
from arena import Arena, plan
from cells import LAYOUTS, Ceiling, Cell, anchors_of, select
from inputs import Inputs

import kvit
from kvit._cli.compare import Mismatch
from support import ROOT

SEED = 1


# Mean lengths of 150 end within a page of 64; a codec of each kind of parameters; 64 caches each, as none fills an L2.
TEXTS = [
    "4x150:4/2,d64",
    "4x150:4/2,d64,p1",
    "4x150:4/2,d64,giant",
    "4x150:4/2,int8,d64,lognormal",
    "4x150:4/2,int4,p7",
    "4x150:4/2,float8_e4m3,d64",
    "4x150:4/2,int8+int4,d64",
    "4x150:4/2,float16,d64",
]
CELLS = select(TEXTS, LAYOUTS)


@pytest.fixture(scope="module")
def make():
    """Makes (inputs, operation, views) of a cell; memory is shared by all, as in a run."""
    arena = Arena(CELLS, kvit.Stream("host"), SEED)

    def made(rng, text):
        cell = Cell.parse(text)
        inputs = Inputs.make(cell, arena, kvit.Stream("host"), rng)
        views = inputs.views()
        return inputs, kvit.Attention(views[0], cell.query_heads), views

    return made


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_right_result_passes(rng, make, cell):
    decode.prove(*make(rng, str(cell)))


def test_a_call_that_writes_nothing_is_noticed(rng, make):
    inputs, op, views = make(rng, "4x150:4/2,d64")

    def idle(*arguments, **options):
        pass

    idle.check = op.check
    with pytest.raises(Mismatch, match="finite"):
        decode.prove(inputs, idle, views)


def test_a_call_that_reads_another_page_is_noticed(rng, make):
    inputs, op, views = make(rng, "4x150:4/2,d64")
    pages = np.asarray(inputs.table.pages)
    pages[[0, 1]] = pages[[1, 0]]  # the kernel's table, not the one that the reference reads
    with pytest.raises(Mismatch, match="sequence 0"):
        decode.prove(inputs, op, views)


@pytest.mark.parametrize("text", ["4x150:4/2,int8,d64", "4x150:4/2,float8_e4m3,d64"])
def test_parameters_that_are_not_used_are_noticed(rng, make, text):
    inputs, op, views = make(rng, text)
    view = views[0]
    if view.k_params.nbytes > 4:
        wrong = {"k_params": view.v_params, "v_params": view.v_params}
    else:
        wrong = {"k_scale": inputs.scales[1], "v_scale": inputs.scales[1]}
    views[0] = kvit.CacheView(view.k, view.v, kv=inputs.cell.kv, dtype="bfloat16", **wrong)
    with pytest.raises(Mismatch, match="sequence 0"):
        decode.prove(inputs, op, views)


def test_caches_that_calls_rotate_over_share_no_byte_and_fit_the_arena():
    cells = [Cell.parse(text) for text in ("2x100:4/2,int8,d64,p7", "3x50:2/2,int8+int4,d64", "1x9:2/1")]
    arena = Arena(cells, kvit.Stream("host"), SEED)
    for cell in cells:
        parts = [part for pools in plan(cell) for part in pools if part is not None]
        assert len(plan(cell)) == cell.copies
        for kind in {part.kind for part in parts}:
            runs = sorted((part.start, part.start + part.num_bytes) for part in parts if part.kind == kind)
            assert all(end <= start for (_, end), (start, _) in zip(runs, runs[1:], strict=False))
        assert all(arena.buffer(part).nbytes == part.num_bytes for part in parts)


def test_the_reference_reads_what_the_device_holds():
    cell = Cell.parse("4x3000:4/4,int4,p7")  # 64 caches of it are longer than a block of random numbers
    arena = Arena([cell], kvit.Stream("host"), SEED)
    for part in plan(cell)[-1]:
        np.testing.assert_array_equal(arena.read(part, 5, 4000), arena.buffer(part).numpy()[5:4005])


def test_a_run_measures_every_cell_and_says_how_far_it_is(monkeypatch, capfd):
    clock = iter([50.0, 45.0, 60.0, 55.0])
    monkeypatch.setattr(measure, "Replay", lambda stream, calls: calls[0]())
    monkeypatch.setattr(measure, "take_turns", lambda contenders, replays: [next(clock) for _ in contenders])
    monkeypatch.setattr(measure, "read_ceiling", lambda *_: Ceiling(3000.0, 2 << 30, "kvit_read__x8", 264))
    cells = select(["2x40:2/1,d64", "2x40:2/1,int8,d64"], ["HND"])
    ceiling, results = decode.run(cells, kvit.Stream("host"), replays=1)
    assert [result.cell for result in results] == cells
    assert [(result.us, result.ahead_us) for result in results] == [(50.0, 45.0), (60.0, 55.0)]
    assert [result.kernel for result in results] == [
        "kvit_decode__bf16_b16_d64_h8_cp_async_plain",
        "kvit_decode__bf16_i8_d64_h8_cp_async_plain",
    ]
    said = capfd.readouterr().err.splitlines()
    assert [result.anchor for result in results] == [None, None]  # nobody measured the host
    assert said[-1].startswith("[2/2] 2x40:2/1,int8,d64,HND: 60.0 us, 55.0 reading ahead") and len(said) == 5


def test_results_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    from report import Result
    from roofline import plot

    known = anchors_of("NVIDIA H200")
    rows = [
        Result(cell, 10.0 + cell.kv_bytes / 3e6, 8.0, "kernel", {"a": 12.0, "b": "missing"}, known.get(cell))
        for cell in select(["1x4096", "8x4096,int8", "8x4096,p1", "64x4096,int4,d64"], ["NHD"])
    ]
    for peak in (3352.0, None):
        plot(tmp_path / "found.png", rows, Ceiling(3000.0, 2 << 30, "kvit_read__x8", 264), peak, "a card")
        assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "decode.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_cell_that_is_none_is_a_usage_error():
    done = run("--cells", "64")
    assert done.returncode == 2
    assert "cells look like 64x8192" in done.stderr


def test_the_host_is_refused_with_the_reason():
    done = run("--device", "host")
    assert (done.returncode, done.stdout) == (2, "")
    assert "proves arithmetic, not speed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.gpu
def test_small_cells_are_measured_and_written(tmp_path):
    cells = ("2x1024", "2x1024,int8,p16", "2x1024,float8_e4m3,lognormal")
    done = run("--cells", *cells, "--layout", "HND", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    assert "2x1024:32/8,int8,p16,HND" in done.stdout and "of ceiling" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["cells"]) == 3
    for cell in found["cells"]:
        assert 0 < cell["gbps"] < 1.1 * found["ceiling"]["gbps"]
