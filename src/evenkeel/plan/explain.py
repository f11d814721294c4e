"""Why a plan has a setting: rule, inputs, reason, source, risk, verification.  Pure lookup; the plan tells it all.

An identifier is that of a setting (``R-RT-4:ktimers/10``), of a rule (``R-RT-4``, all its settings), of an element of
guest definitions (``G-4``), or the name of a guest.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.documents.plan import GuestPlan, Note, Plan, Setting
from evenkeel.errors import WrongInput
from evenkeel.plan.guest import ELEMENTS, GuestRule, elements_of
from evenkeel.plan.problems import did_you_mean
from evenkeel.plan.rules import CATALOGUE, rule_by_id
from evenkeel.plan.rules.rule import Rule


@dataclass(frozen=True)
class Explanation:
    """Everything that a plan says about one identifier.  Each entry comes with the name of its host."""

    id: str
    rule: Rule | None = None
    element: GuestRule | None = None
    settings: tuple[tuple[str, Setting], ...] = ()
    notes: tuple[tuple[str, Note], ...] = ()
    guests: tuple[tuple[str, GuestPlan], ...] = ()


def explain(plan: Plan, identifier: str, host: str | None = None) -> Explanation:
    """Raises WrongInput, with the nearest identifier, for one that the plan and the catalogue do not know."""
    hosts = [one for one in plan.hosts if host in (None, one.name)]
    if not hosts:
        raise WrongInput(
            f"the plan has no host {host}", hint=did_you_mean(host or "", [one.name for one in plan.hosts])
        )
    wanted = _spelling(plan, identifier)
    settings = tuple(
        (one.name, setting) for one in hosts for setting in one.settings if wanted in (setting.id, setting.rule)
    )
    notes = tuple((one.name, note) for one in hosts for note in one.notes if note.rule == wanted)
    element = next((rule for rule in ELEMENTS if rule.id == wanted), None)
    guests = tuple(
        (one.name, guest)
        for one in hosts
        for guest in one.guests
        if guest.name == wanted or (element is not None and element.id in _elements(guest))
    )
    rule = rule_by_id(settings[0][1].rule if settings else wanted)
    if rule is None and element is None and not (settings or notes or guests):
        raise WrongInput(f"the plan has nothing named {identifier}", hint=did_you_mean(identifier, _known(plan)))
    return Explanation(wanted, rule, element, settings, notes, guests)


def _elements(guest: GuestPlan) -> tuple[str, ...]:
    return elements_of(guest.goal, len(guest.cells), len(guest.functions))


def _known(plan: Plan) -> set[str]:
    known = {rule.id for rule in CATALOGUE} | {rule.id for rule in ELEMENTS}
    for host in plan.hosts:
        known |= {setting.id for setting in host.settings} | {note.rule for note in host.notes}
        known |= {guest.name for guest in host.guests}
    return known


def _spelling(plan: Plan, identifier: str) -> str:
    """The identifier as the plan writes it: people type small letters."""
    known = _known(plan)
    if identifier in known:
        return identifier
    folded = [name for name in sorted(known) if name.casefold() == identifier.casefold()]
    return folded[0] if len(folded) == 1 else identifier


def scope(rule: Rule) -> str:
    """For which goals and kernels a rule is true: ``"performance, realtime; Linux 6.11 and later"``."""
    order = ("flexible", "balanced", "performance", "realtime")
    goals = ", ".join(goal for goal in order if goal in rule.levels) + "; a data plane" * rule.data_plane
    kernels = []
    if rule.since:
        kernels.append(f"Linux {'.'.join(map(str, rule.since))} and later")
    if rule.before:
        kernels.append(f"before Linux {'.'.join(map(str, rule.before))}")
    return "; ".join([goals, *kernels])
