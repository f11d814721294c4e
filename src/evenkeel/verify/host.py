"""The whole verification of one host: look, then judge."""

from __future__ import annotations

from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check, Findings
from evenkeel.documents.plan import HostPlan
from evenkeel.machines.protocol import OnProgress, Probe
from evenkeel.verify import guests, interrupts, kernel, settings, spinners
from evenkeel.verify.observe import Observation, Options, observe


def verify_host(
    host: HostPlan,
    probe: Probe,
    facts: Facts,
    *,
    plan_sha256: str | None = None,
    options: Options | None = None,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Compare a host with its plan.  ``facts``: read just now; they hold the values of all settings.

    Takes 4 s for the spinner, 8 s for the one under load, and some for each guest.  The load is hackbench on every CPU
    where the scheduler may put it, which the guests must not notice but the host's own services do; see Options.
    Raises Unreachable when the connection is lost.
    """
    seen = observe(host, probe, facts, options or Options(), on_progress)
    return findings(host, seen, plan_sha256=plan_sha256, options=options)


def findings(
    host: HostPlan, seen: Observation, *, plan_sha256: str | None = None, options: Options | None = None
) -> Findings:
    """Judge what was seen.  Pure: the same observation gives the same findings."""
    checks: tuple[Check, ...] = (
        *kernel.check(host, seen.facts),
        *settings.check(host, seen),
        *interrupts.check(host, seen),
        *guests.check(host, seen),
        *spinners.check(host, seen, options or Options()),
    )
    return Findings(
        host=host.name,
        plan_sha256=plan_sha256,
        kernel=f"{seen.facts.kernel.release} {seen.facts.kernel.version}".strip(),
        emulated=seen.facts.identity.emulated,
        checks=checks,
    )
