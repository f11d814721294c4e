"""A script that the firmware of a machine boots by network, as what it is installed from.

The lab answers iPXE (:mod:`evenkeel.lab.api.netboot`); DHCP and the first stage are the site's.  A BMC, where there is
one, has the next boot from the network; without one the firmware must ask the network first at every boot.
"""

from __future__ import annotations

import contextlib

from sqlalchemy import select

from evenkeel.errors import NotAsWanted
from evenkeel.lab import install, power, schema
from evenkeel.lab.install import NotBooted, Undo, step
from evenkeel.lab.lab import Lab
from evenkeel.lab.netboot_offers import Offer
from evenkeel.lab.power_drivers import Method
from evenkeel.lab.power_drivers.ipmi import Ipmi
from evenkeel.lab.power_drivers.redfish import Redfish
from evenkeel.lab.prepare import Say
from evenkeel.lab.store import Away, StoreClosed
from evenkeel.lab.touch import Touched


class Network:
    """A :class:`evenkeel.lab.install.Source`.  ``script``: URL that iPXE fetches."""

    asked = True

    def __init__(self, lab: Lab, machine: Touched, script: str) -> None:
        self.macs = _own_cards(lab, machine)
        bmc = power.driver(lab, machine, "bmc")
        self.bmc = bmc if isinstance(bmc, Redfish | Ipmi) else None
        self.method: Method | None = "bmc" if self.bmc else None
        self.lab, self.machine, self.script = lab, machine, script
        self.offer_made: Offer | None = None

    def clear(self) -> None:
        if self.bmc is not None:
            self.bmc.clear(install.SET_S)

    def offer(self, say: Say, undo: list[Undo]) -> None:
        def taken(mac: str) -> None:
            # The machine waits for its answer, and gets it whether or not this can be told.
            with contextlib.suppress(StoreClosed, Away):
                say(f"{mac} asked what to boot, and was told {self.script}")

        made = self.lab.netboots.make(self.script, self.macs, taken)
        if made is None:
            raise NotBooted(f"a network card of {self.machine.name} is in another machine that is installed now")
        self.offer_made = made
        undo.append(Undo("it may still be offered", lambda: self.lab.netboots.withdraw(made)))
        say(f"offering it {self.script}" + ("" if self.bmc else "; without a BMC, its firmware must ask by itself"))
        if (bmc := self.bmc) is None:
            return
        with step("having it boot from the network"):
            usual = bmc.usual_boot(install.SET_S)
            undo.append(Undo("it may still be set to boot from the network", lambda: usual(install.SET_S)))
            bmc.boot_from_network(install.SET_S)

    def switching(self) -> None:
        if self.offer_made is not None:
            self.offer_made.open.set()

    def refuted(self) -> str:
        if self.offer_made is not None and self.offer_made.taken.is_set():
            return ""
        return (
            "it booted, and its firmware did not ask the lab what: is the network its first boot device, "
            "and does DHCP name /boot.ipxe of this lab?"
        )

    def forgot(self) -> str:
        return f"it was told to boot {self.script}, and did not: can it fetch that?"


def _own_cards(lab: Lab, machine: Touched) -> frozenset[str]:
    """Addresses of network cards that no other machine has by its facts, which owners write: an offer must not install
    somebody else's machine.  Raises NotAsWanted: there are none."""
    fact, table = schema.fact.c, schema.machine.c
    with lab.store.read() as connection:
        asked = select(fact.text, fact.machine_id).join(schema.machine, table.id == fact.machine_id)
        rows = connection.execute(asked.where(fact.key == "mac", table.state != "retired")).all()
    others = {row.text for row in rows if row.machine_id != machine.id}
    cards = {row.text for row in rows if row.machine_id == machine.id}
    if not cards:
        raise NotAsWanted(
            f"{machine.name} is to be installed by network, and its facts have no network card",
            hint=f"evenkeel lab machine facts {machine.name}",
        )
    if not cards - others:
        raise NotAsWanted(
            f"{machine.name} is to be installed by network, and other machines have its network cards by their facts",
            hint=f"evenkeel lab search mac:{min(cards)}",
        )
    return frozenset(cards - others)
