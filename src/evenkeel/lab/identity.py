"""Which machine is this?  By serial numbers and MAC addresses, whatever it is called and wherever it stands.  Pure.

A name, an IP address and a site can change; a board or a card can be swapped.  What agrees wholly is the same machine;
what agrees in part and contradicts in part is asked about, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.base import Model
from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory

#: What vendors leave in firmware that nobody filled in.
_NO_SERIAL = frozenset(
    {
        *("0", "none", "n/a", "na", "unknown", "default string", "not specified", "not available", "not applicable"),
        *("to be filled by o.e.m.", "system serial number", "base board serial number", "chassis serial number"),
        *("0123456789", "123456789", "1234567890", "invalid", "empty", "oem", "xxxxxxxxxx"),
    }
)
_NO_UUID = frozenset({"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"})


class Identity(Model):
    """``macs``: of cards on PCI, and only those that a manufacturer gave (not locally administered)."""

    uuid: str | None = None
    system: str | None = None
    board: str | None = None
    macs: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.uuid or self.system or self.board or self.macs)


def identity_of(facts: Facts, inventory: Inventory | None) -> Identity:
    inventory = inventory or Inventory()
    uuid = (inventory.uuid or "").lower()
    return Identity(
        uuid=uuid if uuid and uuid not in _NO_UUID else None,
        system=_serial(inventory.serials.get("system")),
        board=_serial(inventory.serials.get("board")),
        macs=tuple(sorted({nic.mac.lower() for nic in facts.nics if nic.pci and nic.mac and _given(nic.mac)})),
    )


def identity_told(serial: str | None, macs: Iterable[str]) -> Identity:
    """By what people wrote down (an inventory such as NetBox), until the machine itself says it."""
    return Identity(system=_serial(serial), macs=tuple(sorted({mac.lower() for mac in macs if _given(mac)})))


def _serial(text: str | None) -> str | None:
    clean = (text or "").strip().lower()
    return None if not clean or clean in _NO_SERIAL or not clean.strip("0.-x ") else clean


def _given(mac: str) -> bool:
    """IEEE 802: bit 0x02 of the first byte is "locally administered"; virtual machines share such addresses."""
    try:
        first = int(mac[:2], 16)
    except ValueError:
        return False
    return len(mac) == 17 and not first & 0x03


@dataclass(frozen=True)
class Likeness:
    """``same``: no doubt; ``other``: nothing in common; ``doubt``: ``why`` says what agrees and what does not."""

    verdict: Literal["same", "other", "doubt"]
    why: str = ""


def compare(known: Identity, found: Identity) -> Likeness:
    """Whether ``found`` is the machine that was ``known``."""
    agree: list[str] = []
    differ: list[str] = []
    for what in ("system", "board", "uuid"):
        old, new = getattr(known, what), getattr(found, what)
        if old and new:
            name = "the UUID of the system" if what == "uuid" else f"the serial number of the {what}"
            (agree if old == new else differ).append(name)
    common = set(known.macs) & set(found.macs)
    if common:
        agree.append(f"MAC {', '.join(sorted(common))}")
    if not agree:
        return Likeness("other")
    told = f"{_listed(agree)} {'is' if len(agree) == 1 else 'are'} the same"
    if not differ:
        # A card that moved brings its MAC along: alone it proves something only when the others did not contradict.
        old_macs, new_macs = set(known.macs), set(found.macs)
        sure = agree[0].startswith("the ") or old_macs <= new_macs or new_macs <= old_macs
        return Likeness("same", told) if sure else Likeness("doubt", f"{told}, but other MACs are not")
    return Likeness("doubt", f"{told}, but {_listed(differ)} {'is' if len(differ) == 1 else 'are'} another")


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]
