"""A running guest against its PCI functions: one that is missing, another one, one too many, one the host has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from evenkeel.documents.facts import PciFunction
from evenkeel.documents.findings import Check
from evenkeel.verify.host import findings
from evenkeel.verify.observe import Observation
from tests.verify.record import load

ADDRESS, OTHER = "0000:20:10.0", "0000:20:10.1"
DEVICE = (
    '<hostdev mode="subsystem" type="pci" managed="yes"><driver name="vfio"/><source><address domain="0x0000" '
    'bus="0x20" slot="0x10" function="0x{}"/></source></hostdev>'
)
PLAN, SEEN = load()
Change = Callable[[Observation], Observation]


def with_devices(xml: str, *numbers: int) -> str:
    return xml.replace("<devices>", "<devices>" + "".join(DEVICE.format(number) for number in numbers), 1)


def live(*numbers: int) -> Change:
    """``numbers``: of the functions that the running guest has."""

    def change(seen: Observation) -> Observation:
        plc = seen.guests["plc"]
        return replace(seen, guests={**seen.guests, "plc": replace(plc, live=with_devices(plc.live or "", *numbers))})

    return change


def on_host(**drivers: str) -> Change:
    def change(seen: Observation) -> Observation:
        pci = tuple(
            PciFunction(address=f"0000:20:10.{name[1:]}", class_code="020000", vendor="8086", device="10ca", driver=one)
            for name, one in drivers.items()
        )
        return replace(seen, facts=seen.facts.model_copy(update={"pci": pci}))

    return change


def judge(*changes: Change, planned: bool = True) -> list[Check]:
    """The checks of V-GUEST-PCI.  ``planned``: whether the guest is to have the first function."""
    host, seen = PLAN.hosts[0], SEEN
    if planned:
        guests = tuple(
            one.model_copy(update={"functions": (ADDRESS,), "xml": with_devices(one.xml, 0)})
            if one.name == "plc"
            else one
            for one in host.guests
        )
        host = host.model_copy(update={"guests": guests})
    for change in changes:
        seen = change(seen)
    return [check for check in findings(host, seen).checks if check.id.startswith("V-GUEST-PCI")]


def test_the_planned_function_through_vfio_is_right() -> None:
    (check,) = judge(live(0), on_host(_0="vfio-pci"))
    assert (check.id, check.status, check.observed) == ("V-GUEST-PCI:plc", "passed", ADDRESS)


#: What is broken, and what the finding says.
BREAKS = [
    ("V-GUEST-PCI", (live(), on_host(_0="vfio-pci")), f"{ADDRESS} is missing"),
    ("V-GUEST-PCI", (live(1), on_host(_0="igbvf", _1="vfio-pci")), f"{ADDRESS} is missing, {OTHER} is not in the plan"),
    ("V-GUEST-PCI", (live(0, 1), on_host(_0="vfio-pci", _1="vfio-pci")), f"{OTHER} is not in the plan"),
    ("V-GUEST-PCI", (live(0), on_host(_0="igbvf")), f"the host has {ADDRESS} with driver igbvf"),
    ("V-GUEST-PCI", (live(0), on_host()), f"{ADDRESS} is not on the host"),
]


@pytest.mark.parametrize(("identifier", "changes", "told"), BREAKS)
def test_a_wrong_function_is_a_finding(identifier: str, changes: tuple[Change, ...], told: str) -> None:
    (check,) = judge(*changes)
    assert (check.id, check.status, check.observed) == (f"{identifier}:plc", "failed", told)


def test_a_guest_without_functions_has_the_check_only_when_it_got_one() -> None:
    assert judge(planned=False) == []
    (check,) = judge(live(1), on_host(_1="vfio-pci"), planned=False)
    assert (check.status, check.observed) == ("failed", f"{OTHER} is not in the plan")


def test_a_guest_that_does_not_run_is_not_checked() -> None:
    def off(seen: Observation) -> Observation:
        plc = replace(seen.guests["plc"], state="shut off", threads=None, memory=None, live=None)
        return replace(seen, guests={**seen.guests, "plc": plc})

    (check,) = judge(off)
    assert check.status == "not_checked"
