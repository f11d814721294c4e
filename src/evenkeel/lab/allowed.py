"""Whom a machine's owner lets have it: people, teams, and the steps that they send in.

Asked wherever a machine is given, booked or promised, and where it is told who could have one.  Says nothing of time:
who has or booked a machine is :mod:`evenkeel.lab.claims`' to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from evenkeel.lab import people
from evenkeel.lab.actor import Actor
from evenkeel.lab.machines import Policy, policy_of
from evenkeel.lab.schema import principal


@dataclass(frozen=True)
class Asker:
    """Who would have a machine.  ``teams``: with the one that it would be for; ``anything``: an admin."""

    name: str
    teams: frozenset[str]
    anything: bool = False


def of_actor(actor: Actor, team: str = "") -> Asker:
    return Asker(actor.name, actor.teams | ({team} - {""}), actor.may("anything"))


def of_name(connection: Connection, name: str, team: str = "") -> Asker:
    """Of somebody who asked before, or sent a step in, as what they are now."""
    known = connection.execute(select(principal.c.roles, principal.c.teams).where(principal.c.name == name)).first()
    teams = frozenset(known.teams if known is not None else ()) | ({team} - {""})
    admin = people.is_local_admin(name) or (known is not None and "admin" in known.roles)
    return Asker(name, teams, admin)


def lets(row: Any, who: Asker, length: int | None, *, own_boot: bool) -> bool:
    """Whether the owner of a machine (its row) lets them have it, for so long (nanoseconds; None: for good).

    ``own_boot``: booted from a source of their own, which is not the owner's to have either: somebody comes after."""
    policy = policy_of(row)
    if own_boot and not policy.own_boot:
        return False
    if _theirs(row, who):
        return True
    fits = policy.longest_ns is None or length is None or length <= policy.longest_ns
    return fits and _among(policy, who)


def lets_steps(row: Any, who: Asker) -> bool:
    """Whether steps that they sent in may take it.  The longest reservation is about people, not about steps."""
    policy = policy_of(row)
    return policy.steps and (_theirs(row, who) or _among(policy, who))


def lets_all_steps(row: Any) -> bool:
    """Whether the steps of everybody may take it."""
    policy = policy_of(row)
    return policy.steps and not policy.users and not policy.teams


def _theirs(row: Any, who: Asker) -> bool:
    return who.anything or who.name == row.owner or (bool(row.team) and row.team in who.teams)


def _among(policy: Policy, who: Asker) -> bool:
    """Whether they are among those whom the policy names; it names nobody: all are."""
    everybody = not policy.users and not policy.teams
    return everybody or who.name in policy.users or not who.teams.isdisjoint(policy.teams)
