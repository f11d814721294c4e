"""Power budgets of sites: what the machines of a site count for, and whether one more may be woken or given work.

Counted from what each machine can draw, not measured at the mains, so that a promise holds before the load comes.  In
use, being prepared or being switched on it counts in full; on and unused as idle; off or retired not at all, once it is
known to be.  In full is what its owner states (``draw_watts``), else the most that it told in the last 30 days; idle is
``idle_watts``, else the least that it told.  One that neither states nor tells counts for the budget's
``assumed_watts``, in use or not.

The lab gives no machine and wakes none beyond the budget.  What people switch on themselves, and maintenance, is
counted and never refused.  Who asks for room is :mod:`evenkeel.lab.claims`, :mod:`evenkeel.lab.energy` and the queue.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.lab import held, schema
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.forecast_power import Draw, Power
from evenkeel.lab.lab import Lab

#: What servers of two sockets draw at work, about; for those that do not tell.
ASSUMED_W = 500
#: In the log: what a budget is; and after which a machine that was switched may count for less.
SET = "power.budget"
SWITCHED = frozenset({"power.done", "power.failed", "power.unknown"})
Watts = Annotated[int, Field(gt=0, le=100_000_000)]


class Wanted(Model):
    watts: Watts = Field(description="what all machines of the site may count for")
    assumed_watts: Watts = Field(default=ASSUMED_W, description="what one counts for that does not tell what it draws")


class Budget(Wanted):
    """``counted_watts``: what the site counts for now; ``assumed``: how many of its ``machines`` do not tell."""

    site: str
    counted_watts: float
    machines: int
    assumed: int
    set_by: str
    set_ns: int


@dataclass(frozen=True)
class _Draw:
    """Of a machine: what it counts for now, idle and in use; ``taken``: whether somebody has it.

    ``told``: whether that is stated or measured."""

    name: str
    site: str
    now: float
    least: float
    full: float
    taken: bool
    told: bool

    @property
    def gives(self) -> float:
        """Of what it counts for, what ends with its claim."""
        return self.full - self.least if self.taken else 0.0

    @property
    def more(self) -> float:
        return self.full - self.now


@dataclass
class _Site:
    """``watched``: machines that may be taken, by what they would count for more, the least first."""

    watts: int
    counted: float
    watched: list[tuple[float, str]]


class Rooms:
    """What each site with a budget has left.  To ask for a machine, and to take it, costs the same in any pool."""

    def __init__(self, watts: Mapping[str, int], draws: Mapping[str, _Draw]) -> None:
        self._draws = dict(draws)
        self._gives: dict[str, Mapping[str, float]] = {}
        self._sites = {site: _Site(most, 0.0, []) for site, most in watts.items()}
        for draw in draws.values():
            self._sites[draw.site].counted += draw.now

    def lets(self, machine_id: str) -> bool:
        """Whether it may be woken, or given to somebody; of a site without a budget: always."""
        draw = self._draws.get(machine_id)
        return draw is None or self._sites[draw.site].counted + draw.more <= self._sites[draw.site].watts

    def take(self, machine_id: str) -> list[str]:
        """It is in use from now on.  Returns which of those that are watched are too much now."""
        draw = self._draws.get(machine_id)
        if draw is None:
            return []
        site = self._sites[draw.site]
        site.counted += draw.more
        self._draws[machine_id] = replace(draw, now=draw.full, taken=True)
        gone = []
        while site.watched and site.counted + site.watched[-1][0] > site.watts:
            gone.append(site.watched.pop()[1])
        return gone

    def watch(self, ids: Iterable[str]) -> None:
        """For :meth:`take`."""
        for one in ids:
            if (draw := self._draws.get(one)) is not None:
                bisect.insort(self._sites[draw.site].watched, (draw.more, one))

    def foreseen(self) -> Power:
        """For forecasts: what a step that has a machine adds to what its site counts for, and what sites have left."""
        return Power(
            {name: site.watts - site.counted for name, site in self._sites.items()},
            {
                one: Draw(draw.site, draw.gives if draw.taken else draw.more, draw.full - draw.least)
                for one, draw in self._draws.items()
            },
        )

    def why(self, machine_id: str) -> str:
        """Why :meth:`lets` says no, of a site that has a budget."""
        draw = self._draws[machine_id]
        site = self._sites[draw.site]
        assumed = "" if draw.told else ", as is assumed of what does not tell"
        return (
            f"the power budget of {draw.site} keeps {draw.name} back: it would count for {draw.more:.0f} W more"
            f"{assumed}, and {site.counted:.0f} of {site.watts} W are taken"
        )

    def over(self, ids: Iterable[str]) -> dict[str, str]:
        """Of these the ones that are too much, with :meth:`why`."""
        return {one: self.why(one) for one in ids if not self.lets(one)}

    def excess(self, machine_id: str) -> float:
        """Watts that its site must lose before it may be taken."""
        draw = self._draws[machine_id]
        return self._sites[draw.site].counted + draw.more - self._sites[draw.site].watts

    def gives(self, machine_id: str) -> Mapping[str, float]:
        """By id, machines of its site that are in use, and the watts that each gives back.  The same for all of a
        site."""
        site = self._draws[machine_id].site
        if site not in self._gives:
            self._gives[site] = {
                one: draw.gives for one, draw in self._draws.items() if draw.site == site and draw.gives
            }
        return self._gives[site]


def rooms(connection: Connection) -> Rooms:
    """As it is now.  Costs one small query where no site has a budget."""
    budgets = {row.site: row for row in connection.execute(_BUDGETS)}
    return _rooms(connection, budgets) if budgets else Rooms({}, {})


def _rooms(connection: Connection, budgets: Mapping[str, Any]) -> Rooms:
    rows = connection.execute(_MACHINES, {"sites": list(budgets)}).all()
    taken = set(connection.scalars(held.MACHINES))
    switched = {row.machine_id: row.action for row in connection.execute(_SWITCHED)}
    draws = {}
    for row in rows:
        least, full, known = _watts(row, budgets[row.site].assumed_watts)
        now, used = least, row.state != "off" and row.id in taken
        if row.state == "off":  # while it is switched off it draws yet
            now = {None: 0.0, "off": least}.get(switched.get(row.id), full)
        elif used:
            now = full
        draws[row.id] = _Draw(row.name, row.site, now, least, full, used, known)
    return Rooms({site: budget.watts for site, budget in budgets.items()}, draws)


def _watts(row: Any, assumed: float) -> tuple[float, float, bool]:
    """Idle, in full, and whether that is stated or measured."""
    most = row.most if row.draw_watts is None else row.draw_watts
    if most is None:
        return assumed, assumed, False
    least = row.least if row.idle_watts is None else row.idle_watts
    return (most if least is None else min(least, most)), most, True


def keep(connection: Connection, machine_id: str) -> None:
    """Within a change: a reading of the machine was kept, or old ones went.  So that nobody looks through all again."""
    reading, table = schema.power_reading.c, schema.power_draw
    asked = select(func.min(reading.watts), func.max(reading.watts)).where(reading.machine_id == machine_id)
    least, most = connection.execute(asked).one()
    values = {"least": least, "most": most}
    if not connection.execute(update(table).where(table.c.machine_id == machine_id).values(values)).rowcount:
        connection.execute(insert(table).values(values | {"machine_id": machine_id}))


# -- setting --------------------------------------------------------------------------------------------------------


def budgets(lab: Lab, actor: Actor) -> list[Budget]:
    """Of all sites that have one, by name.  Raises Forbidden."""
    actor.need("read", "see power budgets")
    with lab.store.read() as connection:
        return _budgets(connection)


def _budgets(connection: Connection) -> list[Budget]:
    rows = {row.site: row for row in connection.execute(_BUDGETS)}
    found = _rooms(connection, rows) if rows else Rooms({}, {})
    return [
        Budget(
            site=row.site,
            watts=row.watts,
            assumed_watts=row.assumed_watts,
            counted_watts=round(found._sites[row.site].counted, 1),
            machines=sum(draw.site == row.site for draw in found._draws.values()),
            assumed=sum(draw.site == row.site and not draw.told for draw in found._draws.values()),
            set_by=row.set_by,
            set_ns=row.set_ns,
        )
        for row in rows.values()
    ]


def put(lab: Lab, actor: Actor, site: str, wanted: Wanted) -> Budget:
    """Set the budget of a site, or another one.  What runs goes on, whatever it draws.  Raises NotFound, Forbidden."""
    actor.need("anything", "set a power budget")
    table = schema.power_budget

    def change(connection: Connection) -> Budget:
        known = sorted(set(connection.scalars(select(schema.machine.c.site).distinct())) - {""})
        if site not in known:
            raise NotFound(
                f"no machine stands at {site!r}",
                hint=f"sites are {', '.join(known)}" if known else "evenkeel lab machine edit NAME --site SITE",
            )
        before = connection.execute(_BUDGETS.where(table.c.site == site)).first()
        row = {**wanted.model_dump(), "set_by": actor.name, "set_ns": lab.now()}
        if before is None:
            connection.execute(insert(table).values(row | {"site": site}))
        else:
            connection.execute(update(table).where(table.c.site == site).values(row))
        told = {key: {"old": before and getattr(before, key), "new": value} for key, value in wanted}
        lab.store.event(connection, actor.name, SET, "site", site, **told)
        return next(one for one in _budgets(connection) if one.site == site)

    return lab.store.write(change)


def remove(lab: Lab, actor: Actor, site: str) -> None:
    """The site may draw what it likes.  Raises NotFound, Forbidden."""
    actor.need("anything", "remove a power budget")
    table = schema.power_budget

    def change(connection: Connection) -> None:
        before = connection.execute(_BUDGETS.where(table.c.site == site)).first()
        if before is None:
            raise NotFound(f"{site!r} has no power budget", hint="`evenkeel lab budget` lists them")
        connection.execute(delete(table).where(table.c.site == site))
        lab.store.event(connection, actor.name, SET, "site", site, watts={"old": before.watts, "new": None})

    lab.store.write(change)


_machine, _told = schema.machine.c, schema.power_draw.c
#: Of the policy what is asked for, by the database: to read all of it takes longer than all the rest.
_STATED = [_machine.policy[key].as_float().label(key) for key in ("draw_watts", "idle_watts")]
_MACHINES = (
    select(_machine.id, _machine.name, _machine.site, _machine.state, *_STATED, _told.least, _told.most)
    .select_from(schema.machine.outerjoin(schema.power_draw, _told.machine_id == _machine.id))
    .where(_machine.site.in_(bindparam("sites", expanding=True)), _machine.state != "retired")
)
_BUDGETS = select(schema.power_budget).order_by(schema.power_budget.c.site)
_SWITCHED = select(schema.power_event.c.machine_id, schema.power_event.c.action).where(
    schema.power_event.c.result == "running"
)
