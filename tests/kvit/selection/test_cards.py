"""kvit/selection/cards.py: facts of cards, of which none has to be there."""

from types import SimpleNamespace

import pytest

from kvit.errors import DeviceError
from kvit.selection import cards
from kvit.selection.cards import Card, card_from, card_of, known_cards, peaks_gbps


def test_the_shipped_cards_have_facts_that_cards_can_have():
    assert 3300 <= peaks_gbps()["NVIDIA H100 80GB HBM3"] <= 3400  # 5120 bits at 2.62 GHz, twice a cycle
    for name, card in known_cards().items():
        assert name == card.name and 100 < card.memory_gbps < 20_000 and 16 <= card.num_sms <= 256
        assert (7, 5) <= card.compute_capability < (13, 0)
        assert 3 < card.sm_gbps < 60  # from the L4, whose memory is narrow, to the B200


def test_bandwidth_is_counted_for_each_multiprocessor():
    # An H20 has the memory of an H200 and the multiprocessors of 0.6 of one.
    found = {name: known_cards()[f"NVIDIA {name}"].sm_gbps for name in ("H100 80GB HBM3", "H200", "H20")}
    assert found == pytest.approx({"H100 80GB HBM3": 25.4, "H200": 36.4, "H20": 51.3}, abs=0.05)
    assert Card("unknown", (9, 0), 132).sm_gbps is None
    assert Card("host", None, 4).arch == "host" and Card("some", (12, 1), 4).arch == "sm_121"


class OneDevice(SimpleNamespace):
    """Facts of a device; each is another device."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.mark.parametrize(
    ("name", "told", "rate"),
    [
        ("NVIDIA H200", 4917.0, 4917.0),  # what the driver says goes before what is published
        ("NVIDIA H200", 0.0, 4800),  # it knows no clock
        ("a card nobody tried", 1234.5, 1234.5),
        ("a card nobody tried", 0.0, None),
    ],
)
def test_the_memory_of_a_device_is_what_its_driver_says_or_else_what_is_published(name, told, rate):
    facts = OneDevice(name=name, compute_capability=(9, 0), num_sms=132, memory_gbps=told)
    assert card_of(facts) == Card(name, (9, 0), 132, rate)


def test_the_host_has_no_bandwidth():
    facts = OneDevice(name="host", compute_capability=None, num_sms=4, memory_gbps=None)
    assert card_of(facts) == Card("host", None, 4, None)


def test_a_card_is_found_by_its_name_or_is_itself():
    assert card_from("NVIDIA H20").num_sms == 78
    own = Card("a card nobody tried", (10, 0), 64, 1000.0)
    assert card_from(own) is own
    with pytest.raises(TypeError, match="card is a int; give a name"):
        card_from(90)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("H20", "it has those of NVIDIA H20; of any other"),
        ("h100", "NVIDIA H100 PCIe, NVIDIA H100 80GB HBM3, NVIDIA H100 NVL; of"),
        ("NVIDIA RTX6000", "NVIDIA RTX"),
        ("", "NVIDIA A10, .*Tesla T4; of"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_those_that_are_near(name, near):
    with pytest.raises(DeviceError, match=near) as caught:
        card_from(name)
    assert "give a kvit.selection.cards.Card with its compute capability" in str(caught.value)


def test_facts_in_words():
    assert cards.card_from("NVIDIA H20").words == "NVIDIA H20 (sm_90, 78 multiprocessors, 51.3 GB/s for each)"
    assert Card("host", None, 4).words == "host (host, 4 multiprocessors)"


@pytest.mark.gpu
def test_the_gpu_of_this_machine_agrees():
    from kvit._native.context import Device

    found = card_of(Device.of("cuda:0"))
    known = known_cards().get(found.name)
    if known is None:
        pytest.skip(f"no facts of {found.name} in cards.json")
    assert found[:3] == known[:3] and found.memory_gbps == pytest.approx(known.memory_gbps, rel=0.05)
