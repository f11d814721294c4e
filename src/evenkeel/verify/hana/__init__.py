"""The SAP HANA profile: what of a guest and its host would leave the envelope that SUSE's guide describes.

Not a certification, and none is implied: SAP certifies hardware, SUSE validated versions of its own system, and storage
must pass SAP's own measurement.  This reads definitions and facts and compares them with what the guide says, line by
line.  Pure: text and documents in, checks out.  :mod:`.catalogue` has every check with its source.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenkeel.documents.findings import Check, Findings
from evenkeel.verify.hana.catalogue import RULES, rule
from evenkeel.verify.hana.devices import check_clock, check_metrics, check_network, check_storage
from evenkeel.verify.hana.host import check_host
from evenkeel.verify.hana.memory import check_binding, check_memory, check_pool, check_share
from evenkeel.verify.hana.processors import (
    NO_HOST,
    check_distances,
    check_emulator,
    check_model,
    check_overcommit,
    check_pins,
    check_shape,
)
from evenkeel.verify.hana.subject import Guest, Host

__all__ = ["RULES", "Guest", "Host", "lint"]

#: Checks of a guest that nothing can be said of without its host.
_NEED_HOST = (
    ("HANA-TOPOLOGY", "that of its sockets"),
    ("HANA-SIBLINGS", "each guest core on a host core of its own"),
    ("HANA-BOTH-THREADS", "the CPUs of the core at each of its vCPUs"),
    ("HANA-SOCKETS", "whole sockets"),
    ("HANA-CELLS", "its cells as the host's nodes"),
    ("HANA-DISTANCES", "as numactl --hardware prints them"),
)


def lint(guests: Sequence[Guest], host: Host | None, *, beside: Sequence[Guest] = (), nfs: bool = False) -> Findings:
    """Every check of these guests, and of the host.

    ``host`` None: what needs one is not checked, which is never a pass.  ``beside``: guests of other kinds on the host,
    which count where CPUs and memory are shared out.  ``nfs``: data and log are on NFS.
    """
    checks: list[Check] = []
    for guest in guests:
        checks += check_model(guest)
        checks += check_pins(guest, host)
        if host is None:
            checks += [guest.unknown(identifier, expected, NO_HOST) for identifier, expected in _NEED_HOST]
        else:
            checks += check_shape(guest, host)
            checks += check_distances(guest, host)
        checks += check_emulator(guest, host)
        checks += check_memory(guest)
        checks += check_binding(guest, host)
        checks += check_clock(guest)
        checks += check_network(guest, host)
        checks += check_storage(guest, host, nfs=nfs)
        checks += check_metrics(guest)
    everyone = [*guests, *beside]
    others = {guest.name for guest in beside}
    checks += [check for check in check_overcommit(everyone, host) if check.guest not in others]
    checks += [check for check in check_share(everyone, host) if check.guest not in others]
    if host is None:
        checks += [one.not_checked(None, "", NO_HOST) for one in RULES if one.about == "host"]
    else:
        checks += check_host(host)
        checks += check_pool(everyone, host)
    order = {one.id: number for number, one in enumerate(RULES)}
    names = [guest.name for guest in guests]
    checks.sort(key=lambda check: (names.index(check.guest) if check.guest in names else len(names), order[_id(check)]))
    return Findings(
        host=host.name if host else "",
        kernel=host.facts.kernel.release if host else "",
        emulated=host.facts.identity.emulated if host else None,
        checks=tuple(checks),
    )


def _id(check: Check) -> str:
    return rule(check.id.partition(":")[0]).id
