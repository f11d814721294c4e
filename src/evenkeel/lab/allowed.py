"""Whom a machine's owner lets have it: people, teams, and the steps that they send in.

Asked wherever a machine is given, booked or promised, and where it is told who could have one.  Says nothing of time:
who has or booked a machine is :mod:`evenkeel.lab.claims`' to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from evenkeel.lab import people
from evenkeel.lab.actor import Actor
from evenkeel.lab.machines import Policy, policy_of
from evenkeel.lab.power_drivers.redfish import NO_DRIVE
from evenkeel.lab.schema import endpoint, fact, machine, principal

Kind = Literal["image", "netboot"]
_TAKES: dict[Kind, str] = {
    "image": "has no ssh, or no BMC that speaks Redfish and has a virtual CD drive, and an image takes both",
    "netboot": "has no ssh, no network card that its facts alone have, or neither BMC nor outlet, "
    "and a script takes all three",
}


@dataclass(frozen=True)
class Asker:
    """Who would have a machine.  ``teams``: with the one that it would be for; ``anything``: an admin.

    ``source``: of which kind what they would have it booted from is; None: they bring nothing.  ``able``: ids of the
    machines that can be booted from such a thing, among those whose owners allow it."""

    name: str
    teams: frozenset[str]
    anything: bool = False
    source: Kind | None = None
    able: frozenset[str] = frozenset()


def of_actor(
    connection: Connection, actor: Actor, team: str = "", boot_source: Mapping[str, Any] | None = None
) -> Asker:
    teams = actor.teams | ({team} - {""})
    return Asker(actor.name, teams, actor.may("anything"), *_able(connection, boot_source))


def of_name(connection: Connection, name: str, team: str = "", boot_source: Mapping[str, Any] | None = None) -> Asker:
    """Of somebody who asked before, or sent a step in, as what they are now."""
    known = connection.execute(select(principal.c.roles, principal.c.teams).where(principal.c.name == name)).first()
    teams = frozenset(known.teams if known is not None else ()) | ({team} - {""})
    admin = people.is_local_admin(name) or (known is not None and "admin" in known.roles)
    return Asker(name, teams, admin, *_able(connection, boot_source))


def _able(connection: Connection, boot_source: Mapping[str, Any] | None) -> tuple[Kind | None, frozenset[str]]:
    if not boot_source:
        return None, frozenset()
    kind: Kind = "image" if boot_source.get("image") else "netboot"
    lends, card, other = fact.alias(), fact.alias(), fact.alias()
    way = select(endpoint.c.id).where(endpoint.c.machine_id == lends.c.machine_id)
    means = way.where(endpoint.c.kind == "bmc", endpoint.c.driver == "redfish")
    if kind == "netboot":  # of a card that no other machine has by its facts: see evenkeel.lab.netboot
        same = other.c.key == "mac", other.c.text == card.c.text, other.c.machine_id != card.c.machine_id
        theirs = select(other.c.key).join(machine, machine.c.id == other.c.machine_id)
        alone = ~theirs.where(*same, machine.c.state != "retired").exists()
        means = select(card.c.key).where(card.c.machine_id == lends.c.machine_id, card.c.key == "mac", alone)
    # From the few that are lent so: a list of all network cards is a long one.
    found = select(lends.c.machine_id).where(
        lends.c.key == "boot.own",
        way.where(endpoint.c.kind == "ssh").exists(),
        # What a holder leaves may not answer, and must be started again all the same.
        way.where(endpoint.c.kind.in_(("bmc", "pdu"))).exists(),
        means.exists(),
    )
    able = set(connection.scalars(found))
    if kind == "image" and able:
        bmcs = select(endpoint).where(endpoint.c.kind == "bmc", endpoint.c.machine_id.in_(able))
        # The first of several is the one that is asked (:func:`evenkeel.lab.power.driver`).
        first = {row.machine_id: row for row in connection.execute(bmcs.order_by(endpoint.c.id.desc()))}
        able = {one for one in able if first[one].driver == "redfish" and first[one].options.get("drive") != NO_DRIVE}
    return kind, frozenset(able)


def lets(row: Any, who: Asker, length: int | None) -> bool:
    """Whether the owner of a machine (its row) lets them have it, for so long (nanoseconds; None: for good)."""
    return not why_not(row, who, length)


def why_not(row: Any, who: Asker, length: int | None) -> str:
    """What comes after the machine's name where :func:`lets` says no; else empty."""
    if why := why_not_booted(row, who):
        return why
    policy = policy_of(row)
    if _theirs(row, who):
        return ""
    if not _among(policy, who):
        return f"may not be reserved by {who.name}"
    if policy.longest_ns is None or length is None or length <= policy.longest_ns:
        return ""
    return f"may not be reserved by {who.name} for so long"


def why_not_booted(row: Any, who: Asker) -> str:
    """The same, of what they bring alone, which is not for owners and admins to pass over: somebody comes after."""
    if who.source is None:
        return ""
    if not policy_of(row).lends_boot:
        return f"may not be booted from a source of {who.name}'s own"
    return "" if row.id in who.able else _TAKES[who.source]


def lets_steps(row: Any, who: Asker) -> bool:
    """Whether steps that they sent in may take it.  The longest reservation is about people, not about steps."""
    policy = policy_of(row)
    return _is_for_steps(row, policy) and (_theirs(row, who) or _among(policy, who))


def lets_all_steps(row: Any) -> bool:
    """Whether the steps of everybody may take it."""
    policy = policy_of(row)
    return _is_for_steps(row, policy) and not policy.users and not policy.teams


def _is_for_steps(row: Any, policy: Policy) -> bool:
    """Steps take a machine as it is, so it is for none while its system may be what somebody else booted."""
    return policy.steps and not row.system_of


def _theirs(row: Any, who: Asker) -> bool:
    return who.anything or who.name == row.owner or (bool(row.team) and row.team in who.teams)


def _among(policy: Policy, who: Asker) -> bool:
    """Whether they are among those whom the policy names; it names nobody: all are."""
    everybody = not policy.users and not policy.teams
    return everybody or who.name in policy.users or not who.teams.isdisjoint(policy.teams)
