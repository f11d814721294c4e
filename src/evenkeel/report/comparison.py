"""Before and after, side by side: what disturbed a spinner on a planned real-time CPU, and what does now.

Pure.  Pairs the spins of two Evidence documents; judges nothing, because the limits belong to verify.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.documents.evidence import Evidence, Spin


@dataclass(frozen=True)
class Counted:
    """A number of events within ``seconds``, as it was counted.  ``detail``: what it consists of."""

    count: int
    seconds: float
    detail: str = ""

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.count / self.seconds if self.seconds > 0 else float(self.count)


@dataclass(frozen=True)
class Measure:
    """One kind of event before and after; None: not counted."""

    name: str
    before: Counted | None
    after: Counted | None

    @property
    def change(self) -> str:
        """In words.  Compares rates, since two runs are never of exactly the same length."""
        if self.before is None or self.after is None:
            return ""
        old, new = self.before.rate, self.after.rate
        if not old and not new:
            return "none"
        if not new:
            return "none left"
        if new > 1.05 * old:
            return "more than before"
        factor = old / new
        if factor >= 1.95:
            return f"{factor:.0f} times fewer"
        return f"{100 * (old - new) / old:.0f} % fewer" if factor > 1.05 else "no change"


@dataclass(frozen=True)
class Pair:
    """The same spinner before and after; one of them may be missing."""

    before: Spin | None
    after: Spin | None

    @property
    def spin(self) -> Spin:
        spin = self.after or self.before
        assert spin is not None
        return spin

    @property
    def title(self) -> str:
        spin = self.spin
        place = f"CPU {spin.cpu}" if spin.where == "host" else f"Guest {spin.guest}, on host CPU {spin.cpu}"
        return f"{place}, {'idle host' if spin.load == 'idle' else 'busy host'}"

    @property
    def circumstances(self) -> tuple[str, ...]:
        """How long was counted, and beside what: ``("before: 4.0 s beside hackbench -g 2 on 0-11", "after: ...")``."""
        parts = []
        for moment, spin in (("before", self.before), ("after", self.after)):
            if spin is not None:
                beside = "" if spin.load == "idle" else f" beside {spin.load}"
                parts.append(f"{moment}: {spin.seconds:.1f} s{beside}")
        return tuple(parts)


def pairs(before: Evidence | None, after: Evidence | None) -> tuple[Pair, ...]:
    """Spins matched by place, CPU and kind of load, in the order in which they were taken."""
    old = list(before.spins) if before else []
    found: list[Pair] = []
    for spin in after.spins if after else ():
        match = next((candidate for candidate in old if _key(candidate) == _key(spin)), None)
        if match:
            old.remove(match)
        found.append(Pair(match, spin))
    return (*found, *(Pair(spin, None) for spin in old))


def _key(spin: Spin) -> tuple[str, str | None, int, str]:
    # The load runs on other CPUs after the plan than before it ("hackbench on 0-7", "hackbench on 0-1,4-5"): only its
    # kind is compared.
    return spin.where, spin.guest, spin.cpu, spin.load.split(" ", 1)[0]


def measures(pair: Pair) -> tuple[Measure, ...]:
    """What there is to compare in a pair of spins: counts only, which are exact in emulation as well."""

    def rows(name: str, attribute: str) -> Measure:
        return Measure(name, _sum(pair.before, attribute), _sum(pair.after, attribute))

    return (
        Measure("Timer interrupts", _ticks(pair.before), _ticks(pair.after)),
        Measure("Involuntary switches", _switches(pair.before), _switches(pair.after)),
        rows("Device interrupts", "device_interrupts"),
        rows("Interrupts from other CPUs", "other_interrupts"),
    )


def _ticks(spin: Spin | None) -> Counted | None:
    return Counted(spin.timer_interrupts, spin.seconds) if spin else None


def _switches(spin: Spin | None) -> Counted | None:
    """Without those by the guest whose CPU it is: the plan gives it the CPU, and verification leaves them out, too."""
    if spin is None:
        return None
    own = spin.guest_switches
    return Counted(spin.foreign_switches, spin.seconds, f"{own} more by the guest whose CPU it is" if own else "")


def _sum(spin: Spin | None, attribute: str) -> Counted | None:
    if spin is None:
        return None
    rows: dict[str, int] = getattr(spin, attribute)
    largest = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    detail = ", ".join(f"{name} {count}" for name, count in largest[:4]) + (", ..." if len(largest) > 4 else "")
    return Counted(sum(rows.values()), spin.seconds, detail)
