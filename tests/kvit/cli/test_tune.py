"""kvit tune on the host, whose times mean nothing: what is measured, checked and written, and who reads it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import kvit
from kvit.__main__ import main
from kvit._cli import compare, stopwatch, tune
from kvit._cli.tune_calls import Load, Store, work_on
from kvit._cli.tune_inputs import Inputs
from kvit.selection import registry, tuning
from kvit.selection.cards import Card
from kvit.selection.rules import Rule

STORE, LOAD = Store("b16", 64, "HND", 16), Load(2, 64, 4)


@pytest.fixture(autouse=True)
def files_are_read_again():
    yield
    tuning.forget()


def kvit_tune(*arguments, **environment):
    command = [sys.executable, "-m", "kvit", "tune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


def inputs(store=STORE, stream=None):
    return Inputs(store, work_on(True), stream or kvit.Stream("host"), np.random.default_rng(7))


# --- the command, from end to end -----------------------------------------------------------------------------------


def test_it_writes_rules_that_the_next_process_chooses_by(tmp_path):
    path = tmp_path / "folder" / "host.json"  # the folder is made
    done = kvit_tune("--device", "host", "--seconds", "0.1", "--output", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "its times mean nothing" in done.stdout and f"KVIT_TUNING={path} makes a process read them" in done.stdout
    found = tuning.read(path)
    assert found.card == Card("host", None, 4, None) and found.kvit == registry.installed().kvit
    assert len(found.date) == 10
    by_axis = {rule.axis: rule for rule in found.rules}
    # The first calls alone were measured in that time: one new token, of the usual way to keep K and V.
    # The fastest family always has several ways to copy, and the fastest of these one height or two.
    assert {"family", "copies"} <= set(by_axis) <= {"family", "copies", "rows"}
    assert by_axis["copies"].when["rows"] == {"min": 1, "max": 8}
    assert "1 x 64 with 1 new token (HND, pages of 64): " in by_axis["copies"].why
    code = (
        "import kvit; cache = kvit.PagedCache(4, 64, 2, 128, device='host'); op = kvit.Attention(cache.view, 8)\n"
        "print(op.kernel.family, op.kernel.axes['copies'], op.explain())"
    )
    environment = {**os.environ, tuning.VARIABLE: str(path)}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    family, copies, explained = said.stdout.split(" ", 2)
    assert (family, copies) == (by_axis["family"].order[0], by_axis["copies"].order[0])
    assert f"({path})" in explained
    info = subprocess.run([sys.executable, "-m", "kvit", "info"], capture_output=True, text=True, env=environment)
    assert f"host chooses by {len(found.rules)} rules of {path}" in info.stdout


def test_info_tells_of_a_file_that_is_left_out_or_wrong(tmp_path):
    path = tmp_path / "file.json"

    def info(*arguments):
        command = [sys.executable, "-m", "kvit", "info", *arguments]
        environment = {**os.environ, tuning.VARIABLE: str(path)}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    assert "host chooses nothing: KVIT_TUNING names" in info()
    path.write_text(tuning.text_of("0.0.1", Card("host", None, 4), "unknown", "2026-11-30", [Rule("rows", (8,), "")]))
    assert f"host leaves out the rules of {path}: it was measured with kvit 0.0.1" in info()
    told = json.loads(info("--json"))["devices"][0]["tuning"]
    assert (told["path"], told["rules"], told["error"]) == (str(path), 0, None) and "0.0.1" in told["left_out"]


def test_without_a_name_the_host_writes_nothing(tmp_path):
    done = kvit_tune("--device", "host", "--seconds", "0.1", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0 and "Nothing is written; --output FILE writes the rules" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_is_read_is_the_one_that_is_written_again(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(tuning.text_of("0.0.1", Card("other", (9, 0), 4), "unknown", "2026-11-30", []))
    done = kvit_tune("--device", "host", "--seconds", "0.1", KVIT_TUNING=str(path))
    assert done.returncode == 0, done.stderr
    assert f"{path}, which processes that begin from now on read" in done.stdout
    assert tuning.read(path).card.name == "host" and [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--seconds", "0"), 2, "'0' is no time; give seconds"),
        (("--seed", "x"), 2, "'x' is no number"),
        (("--device", "gpu"), 1, '"cuda:N"'),
        (("--output", "{}/mine.json"), 1, "mine.json is not replaced: kvit tune did not write it; give another"),
        (("--output", "/proc/none/file.json"), 1, "/proc takes no file: No such file or directory; give --output FILE"),
        (("--output", "{}/mine.json/file.json"), 1, "mine.json takes no file: Not a directory"),
        (("--output", "{}"), 1, "is not replaced"),
    ],
)
def test_what_is_wrong_with_its_arguments_is_told_before_anything_is_measured(tmp_path, arguments, status, words):
    (tmp_path / "mine.json").write_text('{"precious": 1}')
    given = [argument.format(tmp_path) for argument in arguments]
    done = kvit_tune(*(() if "--device" in given else ("--device", "host")), *given)
    assert (done.returncode, done.stdout) == (status, "") and words in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "mine.json").read_text() == '{"precious": 1}'


def test_a_gpu_where_there_is_none_is_told():
    done = kvit_tune(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stderr.startswith("kvit: no CUDA GPU can be used")


# --- what makes the times right -------------------------------------------------------------------------------------


class WrongAttention(kvit.Attention):
    """The last element is off where the kernel is not the one that kvit's own rules choose."""

    def __call__(self, q, view, table, *, out, **options):
        super().__call__(q, view, table, out=out, **options)
        if self.kernel.axes["rows"] == 16:
            np.asarray(out).reshape(-1)[-1] += 0.25


def test_kernels_that_disagree_are_told_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kvit, "Attention", WrongAttention)
    path = tmp_path / "host.json"
    assert main(["tune", "--device", "host", "--seconds", "0.1", "--output", str(path)]) == 1
    said = capsys.readouterr().err
    assert "kernels for the same call disagree, so none was timed and nothing is written. b16, head_dim 128" in said
    assert "h16" in said and "Run: kvit selfcheck --device host" in said and not path.exists()


def test_a_lost_token_would_be_seen(monkeypatch):
    # The largest error that is let pass is far below what one token of a sequence makes, wherever it stands.
    made = inputs()
    op = made.contenders(LOAD)[0].op
    q, out, lse = made._arrays(LOAD)
    (table,) = made._tables(LOAD)[:1]
    whole = made._result(op, made._view(), q, table, out, lse)
    # A few tokens decide a result, so it differs by far more from another's than what is let pass.
    assert np.std(whole[0].astype(np.float64)) > 10 * compare.attention_bound(2.0, whole[0].dtype)
    fewer = kvit.PageTable(table.pages, lengths=kvit.Buffer.from_numpy(np.full(2, 63, np.int32), "host"))
    lost = made._result(op, made._view(), q, fewer, out, lse)
    with pytest.raises(kvit.KvitError, match="disagree"):
        made._require_same(LOAD, [op, op], [whole, lost])
    made._require_same(LOAD, [op, op], [whole, whole])


@pytest.mark.parametrize("kv", ["b16", "i8", "e4m3", "i8_i4"])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_all_kernels_for_a_call_agree_and_are_worth_measuring(kv, layout):
    made = inputs(Store(kv, 64, layout, 16))
    for load in (LOAD, Load(1, 128, 40)):
        contenders = made.contenders(load)
        kernels = [each.op.kernel for each in contenders]
        assert len(kernels) > 1 and len(set(kernels)) == len(kernels)
        assert len(made.calls(load, contenders)) == len(kernels)  # raises where they disagree
        view, heads = made._view(), work_on(True).kv_heads * work_on(True).group
        assert kernels[0] == kvit.Attention(view, heads, tokens_per_sequence=load.new_tokens).kernel


def test_a_kernel_that_reads_far_more_often_than_another_is_not_measured():
    heights = {each.op.kernel.axes["rows"] for each in inputs().contenders(Load(1, 128, 40))}
    assert heights == {16, 64, 128}  # 160 rows are 20 passes of 8 rows, and 2 of 128, which count twice


def test_calls_take_turns_at_pages_of_their_own(monkeypatch):
    # An L2 of 96 KiB holds half of 384 tokens of 2 heads of 64 channels: three times the 128 of the load.
    monkeypatch.setattr(kvit, "Device", SimpleNamespace(of=lambda name: SimpleNamespace(l2_bytes=96 << 10)))
    made = inputs()
    tables = made._tables(LOAD)
    pages = [np.asarray(table.pages) for table in tables]
    assert len(tables) == 3 and len(np.unique(pages)) == 3 * 2 * 4
    assert [np.asarray(table.lengths).tolist() for table in tables] == 3 * [[64, 64]]


def test_a_replay_does_every_call_equally_often_and_as_long_as_asked():
    stream, counts = kvit.Stream("host"), [0, 0]
    buffers = [kvit.Buffer.empty(1 << 20, "uint8", "host") for _ in counts]

    def call(i):
        def fill():
            counts[i] += 1
            buffers[i].fill_bytes(i, stream)

        return fill

    replay = stopwatch.Replay(stream, [call(0), call(1)], ms=0.0)
    assert replay.us() > 0
    assert counts == [1 + 1 + 1, 1 + 1]  # the first alone, once each to see how long, once each for the graph
    longer = stopwatch.Replay(stream, [call(0), call(1)], ms=1e9)
    assert counts[1] - 2 == 1 + stopwatch._MOST_CALLS // 2 and longer.us() > 0


class Steady:
    """Takes as long as it is told, and notes who had a turn."""

    def __init__(self, times, turns, name):
        self._times, self._turns, self._name = iter(times), turns, name

    def us(self):
        self._turns.append(self._name)
        return next(self._times)


def test_contenders_take_turns_and_the_median_counts_without_the_warm_up():
    turns = []
    slow_at_first = Steady([900.0, 5.0, 3.0, 4.0, 90.0, 1.0], turns, "a")
    assert stopwatch.take_turns([slow_at_first, Steady([2.0] * 6, turns, "b")], 5) == [4.0, 2.0]
    assert "".join(turns) == "abba" * 3


def test_the_time_that_is_given_ends_it_between_calls(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(tune.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(tune, "_times", lambda stream, calls, work: [1.0 + i for i in range(len(calls))])
    device, work = kvit.Device.of("host"), work_on(True)
    seen = []
    ways = [STORE, STORE._replace(layout="NHD")]
    measured = tune._measure(device, ways, work, 6.0, 1, lambda fraction, words: seen.append((fraction, words)))
    assert measured.stores == 1 and len(seen) == 5  # the rungs of one way, and one of the next
    assert [fraction for fraction, _ in seen] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert seen[4][1] == "b16, head_dim 64, NHD, pages of 16: 1 x 64 with 1 new token"
