"""What an ailment is: its text for people, and how to recognise it.  No ailment is named here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.findings import EvidenceItem
from evenkeel.verify.doctor.patient import Need, Patient

Subject = Literal["setting", "thread", "page", "interrupt", "spinner", "guest", "ledger", "kernel"]
Severity = Literal["harmful", "warning", "note"]


@dataclass(frozen=True)
class Symptom:
    """One place where the ailment shows.  ``severity``: where this one is not as bad as the ailment can be."""

    observed: str
    evidence: tuple[EvidenceItem, ...]
    severity: Severity | None = None
    guest: str | None = None
    fix: str = ""  # where a better one than the ailment's is known


@dataclass(frozen=True)
class Blind:
    """The facts do not tell; ``reason`` says what is missing and how to get it."""

    reason: str


@dataclass(frozen=True)
class Ailment:
    """One line of the doctor's catalogue.

    ``healthy``: what is expected; ``severity``: how bad it can be; ``source``: where it was measured or is documented.
    """

    id: str
    subject: Subject
    severity: Severity
    healthy: str
    why: str
    fix: str
    source: str
    look: Callable[[Patient], Iterable[Symptom] | Blind]
    #: Parts of the facts without which "nothing found" would say nothing.
    needs: tuple[Need, ...] = ("command line",)


def item(where: str, value: object) -> EvidenceItem:
    return EvidenceItem(where=where, value=str(value))
