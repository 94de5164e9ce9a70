"""kvit/selection/tuning.py: which file of measured rules is read, what it decides, and how a wrong one is told."""

import json
import re
import subprocess
import sys

import pytest

import kvit
from kvit.selection import registry, tuning
from kvit.selection.cards import Card, known_cards
from kvit.selection.rules import L2_PROMOTION, Rule, installed_rules
from support.caches import make_case

H200, H20, HOST = known_cards()["NVIDIA H200"], known_cards()["NVIDIA H20"], Card("host", None, 4)
MEASURED = (
    Rule("copies", ("registers", "cp_async"), "us: registers 1.0, cp_async 2.0", when={"rows": {"max": 8}}, first=True),
    Rule(L2_PROMOTION, (256, 128), "us: 256 bytes 1.0, 128 bytes 2.0"),
)


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch, tmp_path):
    """No file of this machine's user, and none that an earlier test had read."""
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    tuning.forget()
    yield
    tuning.forget()


def write(path, card=H200, version=None, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    version = version or registry.installed().kvit
    changes |= {"card": card} if isinstance(card, dict) else {}
    text = tuning.text_of(version, H200 if isinstance(card, dict) else card, "580.159", "2026-11-30", MEASURED)
    path.write_text(json.dumps(json.loads(text) | changes) if changes else text, encoding="utf-8")
    return path


def test_without_a_file_the_rules_are_those_that_kvit_ships():
    for card in (H200, HOST, Card("a card nobody tried", (10, 0), 64)):
        assert tuning.rules_for(card) == tuning.RuleSet(installed_rules())


def test_a_file_says_again_what_was_written(tmp_path):
    found = tuning.read(write(tmp_path / "file.json"))
    assert found[1:5] == (registry.installed().kvit, "580.159", "2026-11-30", H200)
    assert found.rules == tuple(rule._replace(source=str(tmp_path / "file.json")) for rule in MEASURED)
    assert tuning.read(write(tmp_path / "host.json", HOST)).card == HOST


def test_the_variable_names_the_file_and_its_rules_come_before_those_that_kvit_ships(monkeypatch, tmp_path):
    path = write(tmp_path / "file.json")
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    found = tuning.rules_for(H200)
    assert found.rules == (*tuning.read(path).rules, *installed_rules())
    assert (found.path, found.left_out) == (path, None)


def test_the_user_s_folder_has_a_file_for_each_card(monkeypatch, tmp_path):
    path = tuning.usual_path(H200)
    assert path == tmp_path / "config" / "kvit" / "tuning-nvidia-h200.json"
    write(path)
    assert tuning.rules_for(H200).path == path
    assert tuning.rules_for(H20) == tuning.RuleSet(installed_rules())
    tuning.forget()
    monkeypatch.setenv(tuning.VARIABLE, "none")
    assert tuning.rules_for(H200) == tuning.RuleSet(installed_rules())


def test_the_folder_is_the_one_of_the_specification(monkeypatch):
    name = "tuning-nvidia-rtx-6000-ada-generation.json"
    card = known_cards()["NVIDIA RTX 6000 Ada Generation"]
    monkeypatch.setenv("HOME", "/home/someone")
    for configured in ("", "relative/folder"):  # which counts as absent
        monkeypatch.setenv("XDG_CONFIG_HOME", configured)
        assert str(tuning.usual_path(card)) == f"/home/someone/.config/kvit/{name}"
    monkeypatch.setenv("HOME", "nowhere")  # no folder of its own, as services have it
    assert tuning.usual_path(card) is None and tuning.rules_for(card).path is None


def test_the_host_reads_no_file_that_nobody_named(monkeypatch):
    path = write(tuning.usual_path(HOST), HOST)
    assert tuning.rules_for(HOST).path is None
    tuning.forget()
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    assert tuning.rules_for(HOST).path == path


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"card": H20}, r"it was measured on NVIDIA H20 \(sm_90, 78 .*this card is NVIDIA H200 \(sm_90, 132 "),
        ({"card": H200._replace(num_sms=16)}, r"measured on NVIDIA H200 \(sm_90, 16 multiprocessors"),  # a part of one
        ({"version": "0.0.1"}, r"measured with kvit 0.0.1, and this is kvit .*; run `kvit tune` again"),
    ],
    ids=["card", "part of a card", "version"],
)
def test_a_file_of_another_card_or_version_is_left_out_with_the_reason(monkeypatch, tmp_path, written, why):
    path = write(tmp_path / "file.json", **written)
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    found = tuning.rules_for(H200)
    assert found.rules == installed_rules() and found.path == path
    assert re.search(why, found.left_out)


def test_a_file_of_another_version_is_left_out_whatever_its_rules_look_like(monkeypatch, tmp_path):
    rules, card = [{"axis": "rows", "unheard": "of"}], {"name": "NVIDIA H200", "temperature": 60}
    path = write(tmp_path / "file.json", version="9.0.0", rules=rules, card=card)
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    assert "measured with kvit 9.0.0" in tuning.rules_for(H200).left_out


def test_another_clock_of_the_memory_is_no_other_card(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning.VARIABLE, str(write(tmp_path / "file.json", H200._replace(memory_gbps=4917.0))))
    assert tuning.rules_for(H200).left_out is None


@pytest.mark.parametrize("named", [True, False], ids=["by the variable", "in the user's folder"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "since it is no JSON: "),
        ('{"kvit": ', "since it is no JSON: "),
        ("\xff", "since it is no JSON: "),
        ("[]", "it holds a list; it must hold an object with kvit, card, driver, date, rules"),
        ('{"kvit": "0.1.0"}', "it lacks card; it must have kvit, card"),
        ({"driver": 580}, "driver is 580; it must be text"),
        ({"card": "NVIDIA H200"}, "card is 'NVIDIA H200'; it must be an object with name, compute_capability"),
        ({"card": {**H200._asdict(), "num_sms": 0}}, "the other facts those of a card"),
        ({"card": {**H200._asdict(), "compute_capability": [9]}}, "the other facts those of a card"),
        ({"rules": {}}, "rules are a dict; they must be a list"),
        ({"rules": [{"axis": "rows", "order": [8]}]}, "a rule lacks why"),
    ],
)
def test_a_malformed_file_is_an_error_in_words(monkeypatch, tmp_path, text, match, named):
    path = tmp_path / "file.json" if named else tuning.usual_path(H200)
    if named:
        monkeypatch.setenv(tuning.VARIABLE, str(path))
    if isinstance(text, dict):
        write(path, **{key: value for key, value in text.items() if key != "card"})
        path.write_text(json.dumps(json.loads(path.read_text()) | text))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")
    for _ in range(2):  # it is told again, not forgotten
        with pytest.raises(kvit.KvitError, match=match) as caught:
            tuning.rules_for(H200)
        assert str(path) in str(caught.value) and "remove it and run `kvit tune` again" in str(caught.value)


def test_a_file_that_is_missing_or_cannot_be_read_is_an_error_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(kvit.KvitError, match=r"KVIT_TUNING names .*absent.json, which does not exist; write it by"):
        tuning.rules_for(H200)
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path))
    with pytest.raises(kvit.KvitError, match="cannot be read: Is a directory; remove it and run `kvit tune` again"):
        tuning.rules_for(H200)


def test_other_rules_may_be_used_for_a_while(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "absent.json"))
    with tuning.using(MEASURED):
        assert tuning.rules_for(H200) == tuning.rules_for(H20) == tuning.RuleSet(MEASURED)
        with tuning.using(()):
            assert tuning.rules_for(H200).rules == ()
        assert tuning.rules_for(H200).rules == MEASURED
    with pytest.raises(kvit.KvitError):
        tuning.rules_for(H200)


class H200Device:
    """Facts of an H200, as kvit.Device has them."""

    name, compute_capability, num_sms, memory_gbps = H200


def test_what_l2_fetches_is_taken_from_the_file(monkeypatch, tmp_path):
    assert tuning.l2_promotion_bytes(H200Device()) == 128
    tuning.forget()
    monkeypatch.setenv(tuning.VARIABLE, str(write(tmp_path / "file.json")))
    assert tuning.l2_promotion_bytes(H200Device()) == 256


def test_an_operation_is_chosen_by_the_file_and_says_so(monkeypatch, tmp_path, rng):
    view = make_case(rng, [4]).view
    usual = kvit.Attention(view, 8)
    path = write(tmp_path / "file.json", HOST)
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    tuning.forget()
    op = kvit.Attention(view, 8)
    assert (usual.kernel.axes["copies"], op.kernel.axes["copies"]) == ("cp_async", "registers")
    assert f"copies: us: registers 1.0, cp_async 2.0 ({path})" in op.explain()
    assert "(a rule of kvit)" in usual.explain()
    # 12 rows: none of the rules of the file speaks of them.
    assert kvit.Attention(view, 24).kernel.axes["copies"] == "cp_async"


def test_a_rule_may_speak_of_plain_calls_or_of_general_ones(monkeypatch, tmp_path, rng):
    view = make_case(rng, [4]).view
    general = MEASURED[0]._replace(when={"variant": "general"})
    with tuning.using((general, *installed_rules())):
        assert kvit.Attention(view, 8).kernel.axes["copies"] == "cp_async"
        windowed = kvit.Attention(view, 8, window=7)
        assert windowed.plan.choice.rules[0] is general and windowed.kernel.axes["variant"] == "general"


def test_a_file_that_is_left_out_is_told_by_explain(monkeypatch, tmp_path, rng):
    path = write(tmp_path / "file.json", HOST, "0.0.1")
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    op = kvit.Attention(make_case(rng, [4]).view, 8)
    assert op.kernel.axes["copies"] == "cp_async"
    assert f"left out   the rules of {path}: it was measured with kvit 0.0.1, and this is" in op.explain()


def test_the_first_choice_raises_what_is_wrong_with_the_file_and_nothing_is_made(monkeypatch, tmp_path, rng):
    view = make_case(rng, [4]).view
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(kvit.KvitError, match="which does not exist"):
        kvit.Attention(view, 8)


def test_importing_kvit_reads_no_file():
    # It is wrong to be there at all: an import that looked at it would fail.
    code = f"import os; os.environ[{tuning.VARIABLE!r}] = '/absent.json'; import kvit; print('read nothing')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "read nothing\n"
