"""kvit/_cli/tune_rules.py: whatever was measured, the rules choose the kernel that was the fastest."""

import pytest

from kvit._cli.tune_calls import Load, Rung, Store, stores, work_on
from kvit._cli.tune_rules import MARGIN, Figure, groups_of, promotion_rule
from kvit.selection import registry
from kvit.selection.call import Call
from kvit.selection.cards import known_cards
from kvit.selection.choose import choose
from kvit.selection.rules import installed_rules, parse_rules

H200 = known_cards()["NVIDIA H200"]
STORE, LOAD = Store("b16", 128, "HND", 64), Load(8, 4096, 1)
UP_TO_8, UP_TO_64 = Rung(1, 8, (LOAD,)), Rung(49, 64, (LOAD,))


def candidates(kv="b16", head_dim=128):
    """Kernels as a build for Hopper has them, whatever was built here."""
    found = (
        kernel
        for family in ("decode", "prefill")
        for kernel in registry.candidates(family, dtype="bf16", kv=kv, head_dim=head_dim, variant="plain")
    )
    return tuple(kernel._replace(archs=("sm_90", "sm_90a")) for kernel in found if kernel.axes["copies"] != "registers")


KERNELS = {f"{k.family} {k.axes['copies']} h{k.axes['rows']}": k for k in candidates()}


def call(rows, page_size=64):
    return Call("bf16", "b16", 128, rows, page_size)


def figure(times, rows=8, rung=UP_TO_8, load=LOAD, store=STORE):
    """Times by the names of kernels: what kvit's own rules choose stands first."""
    return Figure(store, rung, load, call(rows, store.page_size), {KERNELS[name]: us for name, us in times.items()})


def chosen(rules, rows, page_size=64):
    found = choose(candidates(), call(rows, page_size), H200, rules=(*rules, *installed_rules())).kernel
    return f"{found.family} {found.axes['copies']} h{found.axes['rows']}"


def test_the_fastest_is_chosen_whatever_was_measured(rng):
    # Times of all orders of magnitude in random order: every kernel is the fastest in some of the trials.
    fastest = set()
    for _ in range(200):
        names = [str(name) for name in rng.permutation(list(KERNELS))]
        times = dict(zip(names, 10.0 ** rng.uniform(0, 3, len(names)), strict=True))
        (group,) = groups_of([figure(times, 64, UP_TO_64)])
        best = min(times, key=lambda name: times[name] * (MARGIN if name == names[0] else 1))
        assert group.best is KERNELS[best]
        assert {chosen(group.rules(), rows) for rows in (49, 50, 64)} == {best}
        fastest.add(best)
    assert fastest == set(KERNELS)


def test_rules_speak_of_the_rows_and_pages_that_were_measured_and_of_no_others():
    times = {"decode tma h8": 2.0, "decode cp_async h8": 1.0}
    (group,) = groups_of([figure(times)])
    for rows, copies in ((1, "cp_async"), (8, "cp_async"), (9, "tma")):
        assert chosen(group.rules(), rows).split()[1] == copies
    assert chosen(group.rules(), 8, page_size=16).split()[1] == "tma"
    small = groups_of([figure(times, store=STORE._replace(page_size=16))])[0]
    assert [chosen(small.rules(), 8, size).split()[1] for size in (8, 16, 24, 32, 64)] == 3 * ["cp_async"] + 2 * ["tma"]


def test_rules_speak_of_plain_calls_alone():
    # Of the general kernels some are not built, and none was measured.
    (group,) = groups_of([figure({"decode tma h8": 2.0, "decode cp_async h8": 1.0})])
    for variant, copies in (("plain", "cp_async"), ("general", "tma")):
        rules = (*group.rules(), *installed_rules())
        found = choose(candidates(), call(8)._replace(variant=variant), H200, rules=rules)
        assert found.kernel.axes["copies"] == copies


def test_kvit_s_own_choice_stays_unless_another_is_clearly_faster():
    for us, best in ((0.99, "decode tma h8"), (0.97, "decode cp_async h8")):
        (group,) = groups_of([figure({"decode tma h8": 1.0, "decode cp_async h8": us})])
        assert group.shipped is KERNELS["decode tma h8"] and group.best is KERNELS[best]
        assert chosen(group.rules(), 8) == best


def test_calls_that_the_choice_cannot_tell_apart_count_by_how_much_slower_than_the_fastest():
    # cp_async loses twice by a quarter and wins once by half: 1.25 * 1.25 / 1.5 = 1.04. A sum of times would be misled
    # by the longest call.
    loads = (Load(1, 4096, 1), Load(8, 4096, 1), Load(64, 2048, 1))
    times = ((10.0, 12.5), (30.0, 37.5), (1500.0, 1000.0))
    figures = [
        figure({"decode tma h8": tma, "decode cp_async h8": cp_async}, load=load)
        for load, (tma, cp_async) in zip(loads, times, strict=True)
    ]
    other_layout = figure({"decode tma h8": 10.0, "decode cp_async h8": 8.0}, store=STORE._replace(layout="NHD"))
    (group,) = groups_of(figures)
    assert group.best is KERNELS["decode tma h8"]
    (group,) = groups_of([*figures, other_layout])  # 1.04 * 0.8, of four: 0.95
    assert group.best is KERNELS["decode cp_async h8"] and len(group.figures) == 4


def test_a_kernel_that_was_not_measured_everywhere_is_not_compared():
    first = figure({"decode tma h8": 2.0, "decode tma h16": 1.0})
    second = figure({"decode tma h8": 2.0, "decode cp_async h8": 1.0}, load=Load(1, 4096, 1))
    (group,) = groups_of([first, second])
    assert group.scores.keys() == {KERNELS["decode tma h8"]} and group.rules() == []


def test_a_rule_gives_the_times_as_its_reason_and_is_read_again_as_it_was():
    (group,) = groups_of([figure({"decode tma h8": 20.0, "decode tma h16": 15.25, "decode cp_async h8": 17.0})])
    copies, rows = group.rules()
    assert copies.why == "microseconds of a call, 8 x 4096 with 1 new token (HND, pages of 64): tma 15.2, cp_async 17.0"
    # The rows of the fastest way to copy alone: the 17 of the other way would say nothing of 8 against 16.
    assert rows.why == "microseconds of a call, 8 x 4096 with 1 new token (HND, pages of 64): 16 15.2, 8 20.0"
    assert (copies.order, rows.order) == (("tma", "cp_async"), (16, 8))
    row = {"axis": "rows", "order": [16, 8], "why": rows.why, "when": dict(rows.when), "first": True}
    assert parse_rules([row])[0] == rows


def test_what_l2_fetches_is_what_was_faster_over_all_calls():
    assert promotion_rule({"b16": {128: 10.0, 256: 9.0}, "i8": {128: 10.0, 256: 10.5}}).order == (256, 128)
    assert promotion_rule({"b16": {128: 10.0, 256: 9.9}}).order == (128, 256)
    found = promotion_rule({"b16, 64 x 2048": {256: 120.0, 128: 110.0}})
    assert found.order == (128, 256)
    assert found.why == "microseconds of a call, b16, 64 x 2048: 128 bytes 110.0, 256 bytes 120.0"


def test_the_usual_ways_to_keep_k_and_v_are_measured_first_and_every_plain_one_is():
    found = stores()
    built = registry.candidates("decode", dtype="bf16", variant="plain")
    every = {(k.axes["kv"], k.axes["head_dim"]) for k in built if k.axes["head_dim"] in (64, 128, 256)}
    assert {(store.kv, store.head_dim) for store in found} == every
    assert len(found) == len(set(found)) == 3 * len(every)
    assert [store.kv for store in found[:12:3]] == ["b16", "i8", "i4", "e4m3"]
    assert {store.head_dim for store in found[:12]} == {128}


@pytest.mark.parametrize("is_host", [False, True], ids=["GPU", "host"])
def test_the_rungs_cover_every_number_of_rows_once_and_measure_within(is_host):
    work, least = work_on(is_host), 1
    for rung in work.rungs:
        assert rung.least_rows == least
        for load in rung.loads:
            rows = load.new_tokens * work.group
            assert least <= rows <= (rung.most_rows or rows) and load.context % 64 == 0
            assert load.new_tokens <= load.context and load.batch * load.context <= work.most_tokens
        least = (rung.most_rows or 0) + 1
    assert work.rungs[-1].most_rows is None
