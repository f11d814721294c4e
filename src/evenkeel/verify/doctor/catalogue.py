"""All ailments, and the examination: every one of them is looked for, and every answer becomes a check.

docs/reference/doctor.md is made from this table.  Pure: the same facts give the same findings.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check, Findings, ranked
from evenkeel.verify.doctor import boot, clock, definitions, guests, interrupts, isolation, memory, owners, realtime
from evenkeel.verify.doctor.ailment import Ailment, Blind, Symptom
from evenkeel.verify.doctor.patient import Patient

#: In the order in which a host comes up: boot, CPUs, memory, guests.
AILMENTS: tuple[Ailment, ...] = (
    *boot.AILMENTS,
    *isolation.AILMENTS,
    *interrupts.AILMENTS,
    *clock.AILMENTS,
    *memory.AILMENTS,
    *realtime.AILMENTS,
    *guests.AILMENTS,
    *definitions.AILMENTS,
    *owners.AILMENTS,
)


def examine(facts: Facts, host: str) -> Findings:
    """Look for every ailment.  Findings first, the worst on top; then what could not be checked; then what is well."""
    patient = Patient(facts)
    return Findings(
        host=host,
        kernel=f"{facts.kernel.release} {facts.kernel.version}".strip(),
        emulated=facts.identity.emulated,
        checks=ranked(check for ailment in AILMENTS for check in _checks(ailment, patient)),
    )


def _checks(ailment: Ailment, patient: Patient) -> Iterable[Check]:
    found = ailment.look(patient)
    if isinstance(found, Blind):
        yield _check(ailment, "not_checked", reason=found.reason)
        return
    symptoms = list(found)
    missing = next(filter(None, map(patient.missing, ailment.needs)), None)
    if not symptoms and missing:
        yield _check(ailment, "not_checked", reason=missing)
    elif not symptoms:
        yield _check(ailment, "passed", observed="nothing found")
    for number, symptom in enumerate(symptoms):
        yield _found(ailment, symptom, number if len(symptoms) > 1 else None)


def _found(ailment: Ailment, symptom: Symptom, number: int | None) -> Check:
    part = symptom.guest or (str(number + 1) if number is not None else "")
    return Check(
        id=f"{ailment.id}:{part}" if part else ailment.id,
        subject=ailment.subject,
        title=ailment.healthy,
        status="failed",
        expected=ailment.healthy,
        observed=symptom.observed,
        evidence=symptom.evidence,
        severity=symptom.severity or ailment.severity,
        why=ailment.why,
        fix=symptom.fix or ailment.fix,
        guest=symptom.guest,
    )


def _check(ailment: Ailment, status: str, observed: str = "", reason: str = "") -> Check:
    return Check.model_validate(
        {
            "id": ailment.id,
            "subject": ailment.subject,
            "title": ailment.healthy,
            "status": status,
            "expected": ailment.healthy,
            "observed": observed,
            "severity": ailment.severity,
            "why": ailment.why,
            "fix": ailment.fix,
            "reason": reason,
        }
    )


def kind(check: Check) -> str:
    """The id of the ailment, without the guest or the number behind it."""
    return check.id.partition(":")[0]


def accepted(check: Check, accept: Iterable[str]) -> bool:
    """Whether the owner has said that he knows of this finding: by its id, or by the ailment's."""
    return check.id in accept or kind(check) in accept


def harmful(findings: Findings, accept: Iterable[str] = ()) -> tuple[Check, ...]:
    """The findings that make the answer no."""
    wanted = tuple(accept)
    return tuple(check for check in findings.failed if check.severity == "harmful" and not accepted(check, wanted))
