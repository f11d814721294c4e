"""Power budgets of sites in the forecast: when a machine may be had that its site keeps back now.  Pure, like the rest.

What each machine counts for is :mod:`evenkeel.lab.power_budget`'s to say.  Here it counts in full from when a step has
it, and as idle when that has ended, also when it slept before: when it will sleep again is its owner's to say.  What
people hold is never given back, as nobody knows when.  Times are nanoseconds from now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Watts: what sums of fractions are off by, and more.
_ROUNDED = 1e-6


@dataclass(frozen=True, slots=True)
class Draw:
    """Of a machine whose site has a budget, watts.  ``takes``: what it counts for more when a step gets it the first
    time (all, where it sleeps; nothing, where it is being woken); ``gives``: less, when that has ended."""

    site: str
    takes: float
    gives: float


@dataclass(frozen=True, slots=True)
class Power:
    """``left``: watts of each site with a budget that nobody takes now, below 0 where more is taken than may be."""

    left: Mapping[str, float]
    draws: Mapping[str, Draw]


NONE = Power({}, {})


class Rooms:
    """What sites have left, in one simulated time."""

    def __init__(self, power: Power) -> None:
        self._left, self._draws = dict(power.left), power.draws
        self._costs = {machine: draw.takes for machine, draw in power.draws.items()}

    def lets(self, machine: str) -> bool:
        draw = self._draws.get(machine)
        return draw is None or self._costs[machine] <= self._left[draw.site] + _ROUNDED

    def take(self, machine: str) -> None:
        if (draw := self._draws.get(machine)) is not None:
            self._left[draw.site] -= self._costs[machine]

    def give(self, machine: str) -> None:
        if (draw := self._draws.get(machine)) is not None:
            self._left[draw.site] += draw.gives
            self._costs[machine] = draw.gives


class AtSite(NamedTuple):
    """Of machines that a step may have those at one site: their columns among them, and their places."""

    site: int
    columns: np.ndarray
    places: np.ndarray


class _Site:
    """One site in all passes, a row each.  ``most``: watts that steps may take; of those that take some, in no order:
    when they end, and what each gives back then."""

    def __init__(self, left: float, machines: int, passes: int) -> None:
        self.most = np.full(passes, float(left))
        self._ends, self._gives = np.zeros((passes, 0)), np.zeros((passes, 0))
        # Those that end first ended long before whoever comes now, when each machine has been had twice since.
        self._kept = 2 * machines + 64

    def add(self, ends: np.ndarray, gives: np.ndarray) -> None:
        self._ends = np.concatenate([self._ends, ends[:, None]], axis=1)
        self._gives = np.concatenate([self._gives, gives[:, None]], axis=1)
        if self._ends.shape[1] > 2 * self._kept:
            latest = self._ends.argpartition(-self._kept, axis=1)[:, -self._kept :]
            self._ends = np.take_along_axis(self._ends, latest, axis=1)
            self._gives = np.take_along_axis(self._gives, latest, axis=1)

    def left(self, at: np.ndarray) -> np.ndarray:
        return np.asarray(self.most - (self._gives * (self._ends > at[:, None])).sum(axis=1))

    def until(self, watts: np.ndarray) -> np.ndarray:
        """When so much is left, at the last end at the latest: steps that are never let are not played."""
        count = self._ends.shape[1]
        if not count:
            return np.zeros_like(watts)
        order = self._ends.argsort(axis=1)
        given = np.take_along_axis(self._gives, order, axis=1).cumsum(axis=1)
        wanted = watts - (self.most - given[:, -1])[:, None]
        # All rows by one bisection: each lies beyond the one before.
        beyond = np.arange(len(given))[:, None] * (given[:, -1].max() + np.abs(wanted).max() + 1.0)
        first = (given + beyond).ravel().searchsorted((wanted + beyond).ravel()).reshape(watts.shape)
        first = np.clip(first - np.arange(len(given))[:, None] * count, 0, count - 1)
        return np.take_along_axis(self._ends, np.take_along_axis(order, first, axis=1), axis=1)


class Passes:
    """The same in many simulated times at once, for steps in the order in which they start.

    ``names``: of machines; they are spoken of by their place in it.
    """

    def __init__(self, power: Power, names: Sequence[str], passes: int) -> None:
        drawn = [power.draws.get(name) for name in names]
        numbers = {site: number for number, site in enumerate(power.left)}
        self._site_of = np.array([-1 if draw is None else numbers[draw.site] for draw in drawn], dtype=int)
        self._gives = np.array([0.0 if draw is None else draw.gives for draw in drawn])
        self._costs = np.tile(np.array([0.0 if draw is None else draw.takes for draw in drawn]), (passes, 1))
        self._sites = [
            _Site(left, int((self._site_of == number).sum()), passes) for number, left in enumerate(power.left.values())
        ]
        self._rows = np.arange(passes)

    def runs(self, place: int, ends: np.ndarray) -> None:
        """A step has it already, until then."""
        number = self._site_of[place]
        if number >= 0:
            site = self._sites[number]
            site.most += self._gives[place]
            site.add(ends, np.full_like(ends, self._gives[place]))

    def at_sites(self, places: np.ndarray) -> list[AtSite]:
        """For :meth:`from_when` and :meth:`take`: the same for all steps that may have these machines."""
        sites = self._site_of[places]
        return [
            AtSite(number, columns, places[columns])
            for number in range(len(self._sites))
            if len(columns := np.flatnonzero(sites == number))
        ]

    def from_when(self, ones: list[AtSite], times: np.ndarray, release: np.ndarray) -> np.ndarray:
        """``times``, a row a pass and a column a machine, and not before the site of each lets it.

        What ends later counts until then, also before it begins: it comes before this step in the order of starts."""
        for one in ones:
            site, costs = self._sites[one.site], self._costs[:, one.places] - _ROUNDED
            wait = costs > site.left(release)[:, None]
            if wait.any():
                here = times[:, one.columns]
                times[:, one.columns] = np.where(wait, np.maximum(here, site.until(costs)), here)
        return times

    def take(self, ones: list[AtSite], places: np.ndarray, ends: np.ndarray) -> None:
        """One of them in each pass, until then."""
        for one in ones:
            here = self._site_of[places] == one.site
            if here.any():
                site, rows, taken = self._sites[one.site], self._rows[here], places[here]
                site.most[here] += self._gives[taken] - self._costs[rows, taken]
                site.add(np.where(here, ends, 0.0), np.where(here, self._gives[places], 0.0))
                self._costs[rows, taken] = self._gives[taken]
