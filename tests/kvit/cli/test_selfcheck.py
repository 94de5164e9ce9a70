"""kvit selfcheck finds what is wrong: every check fails on a slightly broken operation, and says how to repeat it."""

import numpy as np
import pytest

import kvit
from kvit.__main__ import main
from kvit._cli import selfcheck
from kvit._cli.checks import CHECKS
from kvit._cli.compare import Mismatch
from kvit._cli.trial import Shape, Trial

SHAPE = Shape("bf16", 64, 16, "NHD")


def trial(number=0):
    return Trial("host", SHAPE, np.random.default_rng([5, number]))


def spoil(tensor):
    """Change the last element that is a number by more than any rounding does. Returns whether there is one."""
    values = np.asarray(tensor).reshape(-1)
    places = np.flatnonzero(np.isfinite(values.astype(np.float32)))
    if len(places):
        values[places[-1]] += 1
    return len(places) > 0


class WrongAttention(kvit.Attention):
    """One element of each output is off."""

    def __call__(self, q, view, table, *, out, **options):
        super().__call__(q, view, table, out=out, **options)
        spoil(out)


class SilentAttention(kvit.Attention):
    """Faults of page tables are never told."""

    def check(self, stream=None):
        try:
            super().check(stream)
        except kvit.PageTableError:
            return


class FickleAttention(kvit.Attention):
    """The second of two calls gives a neighbouring number: within the bound, but other bits."""

    calls = 0

    def __call__(self, q, view, table, *, out, **options):
        super().__call__(q, view, table, out=out, **options)
        self.calls += 1
        if self.calls == 2:
            bits = np.asarray(out).view(np.uint16).reshape(-1)
            bits[np.flatnonzero(bits)[:1]] ^= 1


class SilentAppend(kvit.Append):
    """Faults of page tables are never told."""

    def check(self, stream=None):
        try:
            super().check(stream)
        except kvit.PageTableError:
            return


class BlindAppend(kvit.Append):
    """A page that exists suffers for one that does not."""

    def __call__(self, k, v, view, table, **options):
        super().__call__(k, v, view, table, **options)
        np.asarray(view.k).view(np.uint8).reshape(-1)[-1] ^= 1


class TwistedAppend(kvit.Append):
    """The last query is not turned."""

    def __call__(self, k, v, view, table, *, q, **options):
        last = q.numpy()[-1]
        super().__call__(k, v, view, table, q=q, **options)
        np.asarray(q)[-1] = last


class WrongShift(kvit.Shift):
    """All turn a position too far."""

    def __call__(self, view, table, by, **options):
        super().__call__(view, table, kvit.Buffer.from_numpy(by.numpy() + 1, by.device), **options)


class WrongAppend(kvit.PagedCache):
    """One byte beyond the tokens is written too."""

    def append(self, seqs, k, v, new_tokens=None, **options):
        super().append(seqs, k, v, new_tokens, **options)
        np.asarray(self.view.v).view(np.uint8).reshape(-1)[-1] = 0


class WrongGather(kvit.PagedCache):
    """One element comes back changed."""

    def gather(self, seqs, **options):
        k, v, indptr = super().gather(seqs, **options)
        spoil(k)
        return k, v, indptr


def wrong_attention(q, cache, seqs, attention=kvit.attention):
    """One element is off by a tenth of the largest."""
    out = attention(q, cache, seqs)
    array = out.numpy()
    array.flat[0] += np.abs(array).max() / array.dtype.type(10) + array.dtype.type(0.1)
    return kvit.Buffer.from_numpy(array, out.device)


def fails(check, attempts=20):
    """Whether the check notices within a few random inputs: some have nothing to spoil."""
    for number in range(attempts):
        try:
            CHECKS[check](trial(number))
        except Mismatch:
            return True
    return False


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_passes_as_things_are(check):
    assert not fails(check, attempts=4)


@pytest.mark.parametrize(
    ("check", "name", "broken"),
    [
        ("decode", "Attention", WrongAttention),
        ("several tokens", "Attention", WrongAttention),
        ("bad page table", "Attention", WrongAttention),
        ("bad page table", "Attention", SilentAttention),
        ("decode", "Attention", FickleAttention),
        ("append", "PagedCache", WrongAppend),
        ("append, turned", "Append", BlindAppend),
        ("append, turned", "Append", TwistedAppend),
        ("shift", "Shift", WrongShift),
        ("append to a bad page table", "Append", SilentAppend),
        ("append to a bad page table", "Append", BlindAppend),
        ("gather", "PagedCache", WrongGather),
        ("fork", "PagedCache", WrongGather),
        ("quantised", "PagedCache", WrongGather),
        ("quantised", "attention", wrong_attention),
    ],
)
def test_a_check_notices_an_operation_that_is_slightly_wrong(check, name, broken, monkeypatch):
    monkeypatch.setattr(kvit, name, broken)
    assert fails(check)


def test_the_check_of_merge_notices_a_wrong_lse(monkeypatch):
    merge_states = kvit.merge_states

    def wrong(*states, out, lse):
        merge_states(*states, out=out, lse=lse)
        spoil(lse)

    monkeypatch.setattr(kvit, "merge_states", wrong)
    assert fails("merge")


def test_a_failure_names_the_case_and_the_command_that_repeats_it(monkeypatch, capsys):
    monkeypatch.setattr(kvit, "Attention", WrongAttention)
    assert main(["selfcheck", "--device", "host", "--seconds", "2", "--seed", "9"]) == 1
    words = capsys.readouterr().out
    assert "FAILED" in words.splitlines()[-1]
    again = next(line for line in words.splitlines() if line.startswith("  again: kvit "))
    # The same command, and nothing else, fails alike.
    assert main(again.removeprefix("  again: kvit ").split()) == 1
    first = words[words.index("FAILED") : words.index("  again:")]
    assert first in capsys.readouterr().out


class Clock:
    """A clock that goes on by a second for each case: what fits into a time depends on no machine's speed."""

    def __init__(self, monkeypatch):
        self.cases = 0
        monkeypatch.setattr(selfcheck, "time", self)
        monkeypatch.setattr(selfcheck, "_failure", self._count(selfcheck._failure))

    def monotonic(self):
        return float(self.cases)

    def _count(self, failure):
        def counted(*arguments):
            self.cases += 1
            return failure(*arguments)

        return counted


def test_an_exception_in_a_check_is_a_failure_and_not_the_end(monkeypatch, capsys):
    def explode(trial):
        raise ZeroDivisionError("no such luck")

    clock = Clock(monkeypatch)
    monkeypatch.setitem(CHECKS, "merge", explode)
    assert main(["selfcheck", "--device", "host", "--seconds", "0.1", "--seed", "9"]) == 1
    words = capsys.readouterr().out
    assert "ZeroDivisionError: no such luck" in words and f"{len(CHECKS)} of" in words
    assert "1 FAILED" in words and clock.cases == len(CHECKS)


def test_cases_run_until_the_time_is_up_whatever_the_machine(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    for name in CHECKS:
        monkeypatch.setitem(CHECKS, name, lambda trial: None)
    for seconds, cases in (
        (1, len(CHECKS)),
        (len(CHECKS) + 4, len(CHECKS) + 4),
    ):  # each check once, however little time
        clock.cases = 0
        assert main(["selfcheck", "--device", "host", "--seconds", str(seconds), "--seed", "9"]) == 0
        assert f"host: {cases} of" in capsys.readouterr().out and clock.cases == cases


def test_a_plan_has_every_check_on_every_shape_once_and_each_check_among_the_first():
    cases = selfcheck.plan(3)
    assert len({(case.check, case.shape) for case in cases}) == len(cases)
    assert len(cases) == len(CHECKS) * len({case.shape for case in cases})
    assert [case.check for case in cases[: len(CHECKS)]] == list(CHECKS)
    assert [case.number for case in cases] == list(range(len(cases)))


def test_a_plan_is_the_seed_s():
    assert selfcheck.plan(3) == selfcheck.plan(3) != selfcheck.plan(4)


def bits_of(tmp_path, name, seed="9"):
    path = tmp_path / name
    assert main(["selfcheck", "--device", "host", "--seconds", "0.1", "--seed", seed, "--bits", str(path)]) == 0
    return path.read_text().splitlines()


def test_bits_are_a_digest_for_each_case_the_same_each_time_and_the_seed_s(tmp_path):
    first, again, other = bits_of(tmp_path, "a"), bits_of(tmp_path, "b"), bits_of(tmp_path, "c", seed="10")
    cases = selfcheck.plan(9)
    assert first == again and len(first) == len(CHECKS)
    for line, case in zip(first, cases, strict=False):
        device, number, digest, words = line.split(" ", 3)
        assert (device, number, words) == ("host", str(case.number), f"{case.check}: {case.shape}")
        assert len(digest) == 64
    assert not {line.split()[2] for line in first} & {line.split()[2] for line in other}


def test_bits_of_an_operation_that_gives_other_bits_within_the_bound_differ(tmp_path, monkeypatch):
    # A neighbouring number each time passes the check, and only the digest tells.
    class OtherAttention(kvit.Attention):
        def __call__(self, q, view, table, *, out, **options):
            super().__call__(q, view, table, out=out, **options)
            bits = np.asarray(out).view(np.uint16).reshape(-1)
            bits[np.flatnonzero(bits)[:1]] ^= 1

    usual = bits_of(tmp_path, "a")
    monkeypatch.setattr(kvit, "Attention", OtherAttention)
    changed = bits_of(tmp_path, "b")
    decode = list(CHECKS).index("decode")
    assert usual[decode] != changed[decode]
    append = list(CHECKS).index("append")
    assert usual[append] == changed[append]


def test_bits_that_cannot_be_written_stop_before_the_first_case(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(selfcheck, "_check_device", None)
    path = tmp_path / "missing" / "bits"
    assert main(["selfcheck", "--device", "host", "--bits", str(path)]) == 1
    assert f"--bits cannot write to {path}: No such file or directory" in capsys.readouterr().err
