"""What a machine is told that asks the lab, by iPXE, what to boot: its own disk, or once the script that it is offered.

Kept in memory alone: after a crash of the service nothing is offered, so every machine boots as usual, and an
installation that was under way begins anew.  Knows nothing of machines, only of addresses of network cards.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

#: Ends iPXE as failed, and the firmware goes on with the next of its boot devices: after a boot that succeeded UEFI
#: ends its boot order and shows its menu (UEFI 2.10, 3.1).
FROM_DISK = "#!ipxe\nexit 1\n"
#: Given to every machine, by DHCP; it asks for what the machine with its network card is to boot.  The card is the one
#: that iPXE opened last, which is how it came here.  Where the lab does not answer, the disk is booted.
ASK = "#!ipxe\nchain --replace boot/${netX/mac:hexhyp} || exit 1\n"
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def canonical(mac: str) -> str | None:
    """An address of a network card as facts have it (``52:54:00:12:34:56``); None: it is none."""
    found = mac.strip().lower().replace("-", ":")
    return found if _MAC.fullmatch(found) else None


@dataclass
class Offer:
    """``script``: URL; ``on_taken``: called with the network card that took it, once, in a thread of the server.

    ``open``: set when the machine is being switched; who asks before that is its old system, or somebody else."""

    script: str
    macs: frozenset[str]
    on_taken: Callable[[str], None]
    open: threading.Event = field(default_factory=threading.Event)
    taken: threading.Event = field(default_factory=threading.Event)


@dataclass
class Offers:
    """Of one service."""

    _by_mac: dict[str, Offer] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, script: str, macs: Iterable[str], on_taken: Callable[[str], None]) -> Offer | None:
        """None: one of these network cards has an offer already, so it is in two machines."""
        offer = Offer(script, frozenset(macs), on_taken)
        with self._lock:
            if offer.macs & self._by_mac.keys():
                return None
            self._by_mac |= dict.fromkeys(offer.macs, offer)
        return offer

    def withdraw(self, offer: Offer) -> None:
        with self._lock:
            for mac in offer.macs:
                self._by_mac.pop(mac, None)

    def script_for(self, mac: str) -> str:
        """The text of an iPXE script.  An offer is given once: what installs may boot again when it is done."""
        card = canonical(mac)
        with self._lock:
            offer = self._by_mac.get(card) if card else None
            if card is None or offer is None or not offer.open.is_set() or offer.taken.is_set():
                return FROM_DISK
            offer.taken.set()
        offer.on_taken(card)
        return f"#!ipxe\nchain --replace {offer.script}\n"
