"""Before and after, side by side: what disturbed a spinner on a planned real-time CPU, and what does now.

Pure.  Pairs the spins of two Evidence documents; judges nothing, because the limits belong to verify.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.documents.evidence import Evidence, Spin


@dataclass(frozen=True)
class Measure:
    """One number before and after.  ``less_is_better`` says which way is progress; values are as measured."""

    name: str
    unit: str  # "in 4.0 s", "% of the CPU"
    before: float | None
    after: float | None
    less_is_better: bool = True
    before_detail: str = ""
    after_detail: str = ""

    @property
    def change(self) -> str:
        """In words, made from the rounded values that stand beside it."""
        before, after = self.before, self.after
        if before is None or after is None:
            return ""
        if before == after:
            return "no change"
        if not self.less_is_better:
            return "more" if after > before else "less"
        if after > before:
            return "more than before"
        if after == 0:
            return "none left"
        factor = before / after
        return f"{factor:.0f} times fewer" if factor >= 1.95 else f"{100 * (before - after) / before:.0f} % fewer"


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
        place = f"CPU {spin.cpu}" if spin.where == "host" else f"guest {spin.guest}, on host CPU {spin.cpu}"
        return f"{place}, {'nothing else running' if spin.load == 'idle' else 'beside ' + spin.load}"


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
    """What there is to compare in a pair of spins."""
    before, after = pair.before, pair.after
    seconds = pair.spin.seconds
    unit = f"in {seconds:.0f} s"

    def rate(spin: Spin | None, count: int) -> float | None:
        # Runs of another length are brought to the length of the newer one, so that the two numbers compare.
        return None if spin is None else count if spin.seconds == seconds else round(count * seconds / spin.seconds, 1)

    def counted(name: str, attribute: str) -> Measure:
        return Measure(
            name,
            unit,
            rate(before, getattr(before, attribute)) if before else None,
            rate(after, getattr(after, attribute)) if after else None,
        )

    def summed(name: str, attribute: str) -> Measure:
        def rows(spin: Spin | None) -> dict[str, int]:
            return getattr(spin, attribute) if spin else {}

        return Measure(
            name,
            unit,
            rate(before, sum(rows(before).values())),
            rate(after, sum(rows(after).values())),
            before_detail=_listed(rows(before)),
            after_detail=_listed(rows(after)),
        )

    def share(spin: Spin | None) -> float | None:
        return round(100 * spin.cpu_seconds / spin.seconds, 1) if spin and spin.seconds else None

    return (
        counted("Timer interrupts", "timer_interrupts"),
        counted("Involuntary switches", "involuntary_switches"),
        summed("Device interrupts", "device_interrupts"),
        summed("Interrupts from other CPUs", "other_interrupts"),
        Measure("CPU time that it got,", "%", share(before), share(after), less_is_better=False),
    )


def _listed(rows: dict[str, int]) -> str:
    largest = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    return ", ".join(f"{name} {count}" for name, count in largest[:4]) + (", ..." if len(largest) > 4 else "")
