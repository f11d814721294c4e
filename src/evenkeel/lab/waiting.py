"""Where a waiting claim stands and when its turn comes.  Pure: claims and machines in, places out.

Forward list scheduling: each waiting claim, in order, gets the machine that is free first.  *At latest*: everybody
keeps their machine until its time is over.  *Likely*: they give it back after the part of it that people here mostly
use.  Whoever comes later cannot push it back, except urgent ones.  A step without a time limit has an estimate, which
is likely and nothing to rely on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evenkeel.documents.base import Model
from evenkeel.lab.boots import Wake
from evenkeel.lab.words import duration

#: Machines named in an answer to "why", at most.
_NAMED = 5


class Place(Model):
    """``position``: 1 is next; 0: booked, and not in the queue.  ``likely_ns``, ``at_latest_ns``: None: nobody knows.

    ``why``: what keeps it from each machine that would fit, one sentence each.
    """

    position: int
    likely_ns: int | None
    at_latest_ns: int | None
    why: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """A waiting claim.  ``machines``: ids of those it may have; ``barred``: of those like them that it may not have,
    with what comes after their names to say why."""

    claim_id: int
    holder: str
    length_ns: int | None
    machines: frozenset[str]
    barred: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hold:
    """Who has a machine.  ``until`` None: for good; ``guess``: of a step without a time limit, which may pass it."""

    holder: str
    since: int
    until: int | None
    guess: bool = False


@dataclass(frozen=True)
class Over:
    """Of a machine that a power budget keeps back.  ``excess``: watts that others must give back before; ``gives``: by
    machine in use, what it gives back."""

    why: str
    excess: float
    gives: Mapping[str, float]


@dataclass(frozen=True)
class Pool:
    """``machines``: id -> name, state, reason of the state.  ``held``: by id.

    ``booked``: machine id, holder, start, end.  ``used``: parts (0..1) of their time that past reservations were kept.
    ``wakes``: by id, machines that sleep and are switched on for who waits.  ``over``: by id, machines that are too
    much for a power budget.
    """

    now: int
    machines: Mapping[str, tuple[str, str, str]]
    held: Mapping[str, Hold]
    booked: Sequence[tuple[str, str, int, int | None]]
    used: Sequence[float]
    wakes: Mapping[str, Wake] = field(default_factory=dict)
    over: Mapping[str, Over] = field(default_factory=dict)


def forecast(wishes: Sequence[Wish], pool: Pool) -> dict[int, Place]:
    """A place for each wish, which are in the order in which they are served."""
    # Below ten past reservations nothing is known of how people here are.
    part = statistics.median(pool.used) if len(pool.used) >= 10 else 1.0
    latest, likely = _Plan(pool, 1.0, guess=False), _Plan(pool, part, guess=True)
    places = {}
    for index, wish in enumerate(wishes):
        ahead = sum(1 for other in wishes[:index] if other.machines & wish.machines)
        places[wish.claim_id] = Place(
            position=ahead + 1,
            likely_ns=likely.give(wish),
            at_latest_ns=latest.give(wish),
            why=_why(wish, pool),
        )
    return places


class _Plan:
    """When each machine is free, as claims are given to them one after the other."""

    def __init__(self, pool: Pool, part: float, *, guess: bool) -> None:
        self.part, self.now = part, pool.now
        self.booked = pool.booked
        self.free: dict[str, int] = {}
        for machine_id, (_, state, _) in pool.machines.items():
            if wake := pool.wakes.get(machine_id):
                self.free[machine_id] = pool.now + (wake.median if guess else wake.at_latest)
                continue
            if state in ("suspect", "broken", "off"):
                continue
            if machine_id not in pool.held:
                self.free[machine_id] = pool.now
                continue
            hold = pool.held[machine_id]
            if hold.until is not None and (guess or not hold.guess):
                kept = hold.until - hold.since if hold.guess else int((hold.until - hold.since) * part)
                self.free[machine_id] = max(pool.now, hold.since + kept)
        # Whoever gets the room first is not followed, so it is likely at best, and nothing to rely on.
        self._given: dict[int, list[tuple[int, float]]] = {}
        room = {one: self._room(one, over) if guess else None for one, over in pool.over.items()}
        for machine_id, at in room.items():
            if at is None:
                self.free.pop(machine_id, None)
            else:
                self.free[machine_id] = at

    def _room(self, machine_id: str, over: Over) -> int | None:
        """When those that are in use gave back enough for this one; None: nobody knows."""
        excess, free = over.excess, self.free.get(machine_id)
        given = self._given.get(id(over.gives))  # of a site once
        if given is None:
            ends = ((self.free[one], watts) for one, watts in over.gives.items() if one in self.free)
            given = self._given[id(over.gives)] = sorted(ends)
        for at, watts in given:
            excess -= watts
            if excess <= 0:
                # One that sleeps is switched on then, and takes its time.
                return at if free is None else at + max(0, free - self.now)
        return None

    def give(self, wish: Wish) -> int | None:
        found: tuple[int, str] | None = None
        for machine_id in wish.machines & self.free.keys():
            at = self._gap(machine_id, wish.length_ns)
            if at is not None and (found is None or (at, machine_id) < found):
                found = at, machine_id
        if found is None:
            return None
        at, machine_id = found
        if wish.length_ns is None:
            del self.free[machine_id]
        else:
            self.free[machine_id] = at + int(wish.length_ns * self.part)
        return at

    def _gap(self, machine_id: str, length: int | None) -> int | None:
        """When it is free for so long between what is booked."""
        at = self.free[machine_id]
        for booked, _, start, end in sorted(self.booked, key=lambda one: one[2]):
            if booked != machine_id or (end is not None and end <= at):
                continue
            if length is not None and at + length <= start:
                break
            if end is None:
                return None
            at = end
        return at


def _why(wish: Wish, pool: Pool) -> tuple[str, ...]:
    told = []
    fitting = sorted((pool.machines[one][0], one) for one in wish.machines | wish.barred.keys() if one in pool.machines)
    for name, machine_id in fitting[:_NAMED]:
        _, state, reason = pool.machines[machine_id]
        if why := wish.barred.get(machine_id):
            told.append(f"{name} {why}")
        elif machine_id in pool.held:
            hold = pool.held[machine_id]
            how = ", for a step without a time limit" if hold.guess else " for good" if hold.until is None else ""
            told.append(f"{name} is {hold.holder}'s{how}")
        elif over := pool.over.get(machine_id):
            told.append(over.why)
        elif wake := pool.wakes.get(machine_id):
            told.append(f"{name} sleeps, and takes about {duration(wake.median)} to wake" + _of_others(wake))
        elif state in ("suspect", "broken", "off"):
            told.append(f"{name} is {state}" + (f": {reason}" if reason else ""))
        elif booked := next((one for one in pool.booked if one[0] == machine_id), None):
            told.append(f"{name} is booked by {booked[1]}")
        else:
            told.append(f"{name} goes to somebody before")
    if len(fitting) > _NAMED:
        told.append(f"{len(fitting) - _NAMED} more")
    return tuple(told) or ("no machine fits any more",)


def _of_others(wake: Wake) -> str:
    return "" if wake.learned else " (as most do; none like it has been seen to)"
