"""Power budgets of sites in the forecast: when a machine may be had that its site keeps back now.  Pure, like the rest.

What each machine counts for is :mod:`evenkeel.lab.power_budget`'s to say.  Here it counts from when a step has it until
that ends; one that slept before counts for nothing again after it, as it is put to sleep again.  What people hold is
never given back: nobody knows when.  Times are nanoseconds from now.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Watts: what sums of fractions are off by, and more.
_ROUNDED = 1e-6


@dataclass(frozen=True, slots=True)
class Draw:
    """Of a machine whose site has a budget: what it counts for more while a step has it."""

    site: str
    watts: float


@dataclass(frozen=True, slots=True)
class Power:
    """``left``: watts of each site with a budget that nobody takes now, below 0 where more is taken than may be."""

    left: Mapping[str, float]
    draws: Mapping[str, Draw]

    def most(self, running: Iterable[str]) -> Mapping[str, float]:
        """Watts that each site will have left when the steps have ended that have the machines ``running``."""
        found = dict(self.left)
        for one in running:
            if (draw := self.draws.get(one)) is not None:
                found[draw.site] += draw.watts
        return found


NONE = Power({}, {})


class Rooms:
    """What sites have left, in one simulated time."""

    def __init__(self, power: Power) -> None:
        self._left, self._draws = dict(power.left), power.draws

    def lets(self, machine: str) -> bool:
        draw = self._draws.get(machine)
        return draw is None or draw.watts <= self._left[draw.site]

    def take(self, machine: str) -> None:
        if (draw := self._draws.get(machine)) is not None:
            self._left[draw.site] -= draw.watts

    def give(self, machine: str) -> None:
        if (draw := self._draws.get(machine)) is not None:
            self._left[draw.site] += draw.watts


class AtSite(NamedTuple):
    """Of machines that a step may have those at one site: their columns, and what each counts for."""

    site: str
    columns: np.ndarray
    watts: np.ndarray
    most: float


class Passes:
    """The same in many simulated times at once, for steps in the order in which they start.

    ``names``: of machines; they are spoken of by their place in it.
    """

    def __init__(self, power: Power, names: Sequence[str], passes: int) -> None:
        drawn = [power.draws.get(name) for name in names]
        self._sites = {place: draw.site for place, draw in enumerate(drawn) if draw is not None}
        self._watts = np.array([draw.watts if draw is not None else 0.0 for draw in drawn])
        #: What a site has when no step draws; by site and pass when those end that do, in order, and what that gives.
        self._most = dict(power.left)
        self._ends: dict[str, list[list[float]]] = {site: [[] for _ in range(passes)] for site in power.left}
        self._gives: dict[str, list[list[float]]] = {site: [[] for _ in range(passes)] for site in power.left}

    def runs(self, place: int, ends: np.ndarray) -> None:
        """A step has it already, until then."""
        site = self._sites.get(place)
        if site is not None:
            self._most[site] += float(self._watts[place])
            for number, end in enumerate(ends.tolist()):
                self._keep(site, number, end, float(self._watts[place]))

    def _keep(self, site: str, number: int, end: float, watts: float) -> None:
        ends = self._ends[site][number]
        at = bisect.bisect_right(ends, end)
        ends.insert(at, end)
        self._gives[site][number].insert(at, watts)

    def at_sites(self, places: np.ndarray) -> list[AtSite]:
        """For :meth:`from_when`: the same for all steps that may have these machines."""
        sites = np.array([self._sites.get(place, "") for place in places.tolist()])
        found = []
        for site in self._most:
            columns = np.flatnonzero(sites == site)
            if len(columns):
                watts = self._watts[places[columns]] - _ROUNDED
                found.append(AtSite(site, columns, watts, float(watts.max())))
        return found

    def from_when(self, ones: list[AtSite], times: np.ndarray, release: np.ndarray) -> np.ndarray:
        """``times``, a row a pass and a column a machine, and not before the site of each lets it.

        What ends later counts until then, also before it begins: it comes before this step in the order of starts."""
        for one in ones:
            allowed = np.stack([self._when(one, number, at) for number, at in enumerate(release.tolist())])
            times[:, one.columns] = np.maximum(times[:, one.columns], allowed)
        return times

    def _when(self, one: AtSite, number: int, at: float) -> np.ndarray:
        ends, gives = self._ends[one.site][number], self._gives[one.site][number]
        later = bisect.bisect_right(ends, at)
        left = self._most[one.site] - sum(gives[later:])
        if one.most <= left:
            return np.full(len(one.watts), at)
        lefts = np.array([left, *gives[later:]]).cumsum()
        # At the last at the latest: steps that would never be let are not played.
        first = np.minimum(lefts.searchsorted(one.watts), len(lefts) - 1)
        return np.array([at, *ends[later:]])[first]

    def take(self, places: np.ndarray, ends: np.ndarray) -> None:
        """One of them in each pass, until then."""
        for number, (place, end) in enumerate(zip(places.tolist(), ends.tolist(), strict=True)):
            site = self._sites.get(place)
            if site is not None:
                self._keep(site, number, end, float(self._watts[place]))
