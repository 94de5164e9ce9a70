"""kvit/selection/rules.py: which rules speak of a card and of a call, and which slips in a file are told."""

import pytest

from kvit.selection import registry
from kvit.selection.call import Call
from kvit.selection.cards import Card, known_cards
from kvit.selection.choose import choose
from kvit.selection.rules import L2_PROMOTION, Rule, installed_rules, parse_rules, setting
from support.manifest import manifest

CALL = Call("bf16", "b16", 128, 4, 64)
H20 = known_cards()["NVIDIA H20"]


def rule(**changes):
    return Rule("copies", ("cp_async",), "a reason", **changes)


@pytest.mark.parametrize(
    ("facts", "speaks"),
    [
        ({}, True),
        ({"name": "NVIDIA H20"}, True),
        ({"name": ["NVIDIA H200", "NVIDIA H20"]}, True),
        ({"name": "NVIDIA H200"}, False),
        ({"num_sms": {"max": 80}}, True),
        ({"num_sms": {"max": 77}}, False),
        ({"sm_gbps": {"min": 30}}, True),
        ({"sm_gbps": {"min": 30, "max": 40}}, False),
        ({"memory_gbps": {"min": 3000}, "num_sms": {"min": 100}}, False),  # every wish has to hold
    ],
    ids=str,
)
def test_a_rule_speaks_of_cards_by_their_facts(facts, speaks):
    assert rule(card=facts).applies(CALL, H20) is speaks
    assert rule(card=facts, arch="sm_80").applies(CALL, H20) is False


def test_what_is_not_known_of_a_card_fulfils_no_wish():
    unknown = Card("a card nobody tried", (9, 0), 100)
    assert not rule(card={"sm_gbps": {"min": 0}}).applies(CALL, unknown)
    assert rule(card={"num_sms": 100}).applies(CALL, unknown)
    wide = CALL._replace(head_dim="192x128")  # a head_dim in words is neither more nor less than a number
    assert not rule(when={"head_dim": {"max": 1000}}).applies(wide, unknown)


# What an H100 and an H200 measured; the others follow by their memory for each multiprocessor.
@pytest.mark.parametrize(
    ("name", "promoted"),
    [
        ("NVIDIA H100 80GB HBM3", 256),
        ("NVIDIA H100 PCIe", 256),
        ("NVIDIA H200", 128),
        ("NVIDIA H20", 128),
        ("NVIDIA GH200 480GB", 128),
        ("NVIDIA GH200 144G HBM3e", 128),
        ("NVIDIA B200", 128),
        ("NVIDIA GeForce RTX 5090", 256),
    ],
)
def test_what_l2_fetches_follows_from_the_memory_for_each_multiprocessor(name, promoted):
    found = setting(installed_rules(), L2_PROMOTION, known_cards()[name])
    assert found.order[0] == promoted and found.why


def test_a_card_whose_memory_nobody_knows_fetches_what_most_do():
    assert setting(installed_rules(), L2_PROMOTION, Card("a card nobody tried", (9, 0), 132)).order[0] == 256


def test_a_rule_in_front_of_those_that_kvit_ships_decides_a_setting_and_without_one_these_do():
    own = Rule(L2_PROMOTION, (256,), "measured")
    assert setting((own,), L2_PROMOTION, H20) is own
    assert setting((own._replace(arch="sm_80"),), L2_PROMOTION, H20).order[0] == 128
    assert setting((), L2_PROMOTION, H20).order[0] == 128


def built_for_all(kv, head_dim):
    """The attention kernels of a plain build for every target, whatever was built here."""
    archs = {spec.symbol: spec.archs for spec in manifest("decode", "prefill")}
    return tuple(
        kernel._replace(archs=archs[kernel.symbol])
        for family in ("decode", "prefill")
        for kernel in registry.candidates(family, dtype="bf16", kv=kv, head_dim=head_dim, variant="plain")
    )


HOPPER = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA H20", "NVIDIA GH200 480GB", "NVIDIA GH200 144G HBM3e")


@pytest.mark.parametrize("name", [*HOPPER, "a Hopper GPU nobody tried"])
def test_every_hopper_card_takes_what_was_measured_on_an_h100(name):
    # No rule that kvit ships tells them apart: what was measured on two of them differs by what L2 fetches alone.
    card = known_cards().get(name) or Card(name, (9, 0), 64, 1500.0)
    for kv, head_dim, rows, expected in (
        ("b16", 128, 8, "decode__bf16_b16_d128_h8_tma_plain"),
        ("i4", 128, 16, "decode__bf16_i4_d128_h16_tma_packed_plain"),
        ("b16", 128, 300, "prefill__bf16_b16_d128_h128_tma_plain"),
        ("i8", 64, 300, "prefill__bf16_i8_d64_h128_tma_plain"),
    ):
        call = Call("bf16", kv, head_dim, rows, 64)
        assert choose(built_for_all(kv, head_dim), call, card).kernel.symbol == f"kvit_{expected}"


@pytest.mark.parametrize("name", [name for name, card in known_cards().items() if card.compute_capability >= (8, 0)])
def test_every_known_card_finds_a_kernel_for_every_way_to_keep_k_and_v(name):
    card = known_cards()[name]
    built = registry.candidates("decode", dtype="bf16", variant="plain")
    for kv, head_dim in {(kernel.axes["kv"], kernel.axes["head_dim"]) for kernel in built}:
        for rows in (1, 9, 300):
            call = Call("bf16", kv, head_dim, rows, 16, shares_kv=head_dim == "576x512")
            assert choose(built_for_all(kv, head_dim), call, card).kernel


def test_a_rule_with_first_outweighs_passes_and_one_without_does_not():
    candidates = built_for_all("b16", 128)
    call = Call("bf16", "b16", 128, 64, 64)
    decode = Rule("family", ("decode", "prefill"), "measured")
    usual = choose(candidates, call, H20)
    assert usual.kernel.family == "prefill"
    assert choose(candidates, call, H20, rules=(decode, *installed_rules())).kernel.family == "prefill"
    found = choose(candidates, call, H20, rules=(decode._replace(first=True), *installed_rules()))
    assert found.kernel.symbol == "kvit_decode__bf16_b16_d128_h16_tma_plain"
    assert found.terms == ("family", "passes over K and V", "copies", "idle rows")
    assert found.ranked[0][0] == (0, 4, 1, 0) and usual.ranked[0][0] == (2, 1, 64)


def test_the_shipped_rules_give_reasons():
    assert installed_rules() and all(found.why and found.order for found in installed_rules())


GOOD = {"axis": "rows", "order": [8], "why": "a reason"}


def test_a_rule_has_what_its_object_says_and_where_it_stands():
    (found,) = parse_rules([GOOD | {"arch": "sm_90+", "when": {"rows": {"min": 9}}, "first": True}], "a file")
    assert found == Rule("rows", (8,), "a reason", "sm_90+", {}, {"rows": {"min": 9}}, True, "a file")
    assert parse_rules([GOOD])[0].source == "kvit"


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({}, "rules are a dict; they must be a list"),
        (["rows"], "a rule is 'rows'; it must be an object"),
        ([{"axis": "rows", "order": [8]}], "a rule lacks why"),
        ([GOOD | {"whne": {}}], "a rule has the key 'whne'"),
        ([GOOD | {"source": "me"}], "a rule has the key 'source'"),
        ([GOOD | {"axis": 8}], "axis of a rule is 8; it must be text"),
        ([GOOD | {"order": []}], r"order of a rule is \[\]"),
        ([GOOD | {"order": "tma"}], "order of a rule is 'tma'; it must be a list"),
        ([GOOD | {"order": [None]}], "order of a rule"),
        ([GOOD | {"when": {"pagesize": 8}}], "`when` names pagesize; a call has dtype"),
        ([GOOD | {"when": [8]}], "when of a rule is"),
        ([GOOD | {"when": {"rows": {"least": 8}}}], 'rows of `when` of a rule is .*"min"'),
        ([GOOD | {"when": {"rows": {}}}], "rows of `when`"),
        ([GOOD | {"when": {"rows": {"min": "8"}}}], "rows of `when`"),
        ([GOOD | {"when": {"rows": [None]}}], "rows of `when`"),
        ([GOOD | {"card": {"speed": 3}}], "`card` names speed; a card has name, num_sms, memory_gbps, sm_gbps"),
        ([GOOD | {"arch": "hopper"}], "arch of a rule is 'hopper'; it must be sm_90"),
        ([GOOD | {"arch": "compute_90"}], "arch of a rule is 'compute_90'"),
        ([GOOD | {"arch": 90}], "arch of a rule is 90"),
        ([GOOD | {"first": 1}], "first of a rule is 1; it must be true or false"),
        ([GOOD | {"axis": L2_PROMOTION}], "l2_promotion_bytes of a rule is 8; it must be 128 or 256"),
        ([GOOD | {"axis": L2_PROMOTION, "order": [128], "when": {"rows": 8}}], "it is decided for a card, not for"),
    ],
    ids=str,
)
def test_rules_with_a_slip_in_them_are_an_error(rules, match):
    with pytest.raises(TypeError, match=match):
        parse_rules(rules)
