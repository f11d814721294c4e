"""The catalogue as a reader sees it: rules of hosts and elements of guest definitions in one list, searched.  Pure.

The rules themselves are in :mod:`evenkeel.plan.rules`, the elements in :mod:`evenkeel.plan.guest`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from evenkeel.documents.site import GoalLevel
from evenkeel.errors import WrongInput
from evenkeel.plan.explain import scope
from evenkeel.plan.guest import ELEMENTS, GuestRule, elements_of
from evenkeel.plan.problems import did_you_mean
from evenkeel.plan.rules import CATALOGUE
from evenkeel.plan.rules.rule import Alternative, Rule, Version, kernel_version

LEVELS: tuple[str, ...] = get_args(GoalLevel)
#: Subject of the elements of a guest's definition.
DEFINITION = "definition"
WHEN = {
    "boot": "at the next boot",
    "runtime": "at once",
    "define": "when the guest starts",
    "live": "while the guest runs",
    "report": "no setting of its own",
}


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue, in words."""

    id: str
    subject: str
    title: str
    levels: tuple[str, ...]
    since: Version
    before: Version | None
    scope: str  # levels and kernels, in words
    when: str
    disturbance: str
    phase: str
    inputs: tuple[str, ...]
    value: str
    reason: str  # elements of a definition have one for all guests; a rule gives one for each value
    verification: str
    risk: str
    source: str
    alternatives: tuple[Alternative, ...]
    consent: str | None
    brings: str

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of everything but the alternatives, empty ones left out."""
        found = [
            ("subject", self.subject),
            ("applies to", self.scope),
            ("value", self.value),
            ("reason", self.reason),
            ("looks at", "; ".join(self.inputs)),
            ("takes effect", self._effect()),
            ("consent", f"{self.consent}: sets nothing without it. It brings: {self.brings}" if self.consent else ""),
            ("risk", self.risk),
            ("verified by", self.verification),
            ("source", self.source),
        ]
        return [(name, text) for name, text in found if text]

    def _effect(self) -> str:
        if self.when == "report":
            return WHEN[self.when]
        return f"{WHEN[self.when]}; disturbance: {self.disturbance}; phase: {self.phase}"


def entries() -> tuple[Entry, ...]:
    """Rules of hosts in the order of applying their subjects, then elements of definitions."""
    return tuple(map(_of_rule, CATALOGUE)) + tuple(map(_of_element, ELEMENTS))


def subjects() -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.subject for entry in entries()))


def search(
    words: tuple[str, ...] = (),
    *,
    level: str | None = None,
    subject: str | None = None,
    kernel: str | None = None,
    only_consent: bool = False,
) -> tuple[Entry, ...]:
    """Entries that fit everything asked.  One word that is an id finds that entry alone.

    Raises WrongInput for a level, subject or kernel that there is not, and for a word written like an id that is none.
    """
    everything = entries()
    if level is not None and level not in LEVELS:
        raise WrongInput(f"there is no goal {level}", hint=did_you_mean(level, LEVELS))
    if subject is not None and subject not in subjects():
        raise WrongInput(f"no rule has the subject {subject}", hint=did_you_mean(subject, subjects()))
    version = kernel_version(kernel) if kernel is not None else None
    if version is not None and not version:
        raise WrongInput(f"{kernel} is no kernel version", hint="as in 6.12, or as `uname -r` prints it")
    if len(words) == 1:
        # The id of a setting (R-MM-2:swappiness) leads to its rule.
        wanted = words[0].partition(":")[0].casefold()
        exact = [entry for entry in everything if entry.id.casefold() == wanted]
        if exact:
            return tuple(exact)
        if _like_an_id(words[0]):
            known = [entry.id for entry in everything]
            raise WrongInput(f"there is no rule {words[0]}", hint=did_you_mean(words[0], known))
    return tuple(
        entry
        for entry in everything
        if all(word.casefold() in _text(entry) for word in words)
        and (level is None or level in entry.levels)
        and (subject is None or entry.subject == subject)
        and (version is None or (version >= entry.since and (entry.before is None or version < entry.before)))
        and (entry.consent is not None or not only_consent)
    )


def data(entry: Entry) -> dict[str, Any]:
    """As JSON: versions as text."""
    return asdict(entry) | {"since": _dotted(entry.since), "before": _dotted(entry.before)}


def _dotted(version: Iterable[int] | None) -> str | None:
    return ".".join(map(str, version or ())) or None


def _like_an_id(word: str) -> bool:
    head, dash, _ = word.partition("-")
    return bool(dash) and head.casefold() in {entry.id.partition("-")[0].casefold() for entry in entries()}


def _text(entry: Entry) -> str:
    alternatives = " ".join(f"{one.value} {one.by} {one.rejected}" for one in entry.alternatives)
    parts = (entry.id, entry.title, entry.scope, alternatives, *(text for _, text in entry.lines()))
    return " ".join(parts).casefold()


def _of_rule(rule: Rule) -> Entry:
    return Entry(
        id=rule.id,
        subject=rule.subject,
        title=rule.title,
        levels=tuple(level for level in LEVELS if level in rule.levels),
        since=rule.since,
        before=rule.before,
        scope=scope(rule),
        when=rule.when,
        disturbance=rule.disturbance,
        phase=rule.phase.value,
        inputs=rule.inputs,
        value=rule.value,
        reason="",
        verification=rule.verification,
        risk=rule.risk,
        source=rule.source,
        alternatives=rule.alternatives,
        consent=rule.consent,
        brings=rule.brings,
    )


def _of_element(element: GuestRule) -> Entry:
    levels = tuple(level for level in LEVELS if element.id in elements_of(level, cells=2, functions=1))
    return Entry(
        id=element.id,
        subject=DEFINITION,
        title=element.title,
        levels=levels,
        since=(),
        before=None,
        scope=", ".join(levels),
        when="define",
        disturbance="drain",
        phase="guest",
        inputs=(),
        value="",
        reason=element.reason,
        verification=element.verification,
        risk=element.risk,
        source=element.source,
        alternatives=(),
        consent=None,
        brings="",
    )
