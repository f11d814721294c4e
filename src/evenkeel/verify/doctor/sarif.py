"""Findings as SARIF 2.1.0, the format that code review and CI systems show.  Pure: a structure for JSON.

Source: OASIS Static Analysis Results Interchange Format 2.1.0.  A finding is a ``result``; what could not be checked is
a notification of the invocation, so that nobody takes silence for health.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from evenkeel.documents.base import digest
from evenkeel.documents.findings import Check, EvidenceItem, Findings
from evenkeel.verify.doctor.catalogue import AILMENTS, accepted, kind

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"harmful": "error", "warning": "warning", "note": "note"}
_BASE = "HOST"


class Kind(Protocol):
    """A line of a catalogue: of the doctor's, or of another that makes Findings."""

    @property
    def id(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def healthy(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def fix(self) -> str: ...
    @property
    def source(self) -> str: ...


def sarif(
    findings: Findings,
    accept: Iterable[str] = (),
    *,
    version: str,
    catalogue: Sequence[Kind] = AILMENTS,
    verb: str = "doctor",
) -> dict[str, Any]:
    """One run; ``version``: of Evenkeel; ``catalogue``: the kinds of findings of this verb.

    Paths are relative to the root of the host (``HOST``), because they are in no repository.
    """
    wanted = tuple(accept)
    places = {one.id: number for number, one in enumerate(catalogue)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": f"evenkeel {verb}", "version": version, "rules": _rules(catalogue)}},
                "automationDetails": {"id": f"evenkeel-{verb.replace(' ', '-')}/{findings.host}/"},
                "originalUriBaseIds": {_BASE: {"description": {"text": f"the root of {findings.host}"}}},
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [
                            {
                                "level": "note",
                                "message": {"text": f"not checked: {check.title}: {check.reason}"},
                                "associatedRule": {"id": kind(check), "index": places[kind(check)]},
                            }
                            for check in findings.checks
                            if check.status == "not_checked"
                        ],
                    }
                ],
                "results": [
                    _result(check, findings.host, places[kind(check)], accepted(check, wanted))
                    for check in findings.failed
                ],
            }
        ],
    }


def _rules(catalogue: Sequence[Kind]) -> list[dict[str, Any]]:
    return [
        {
            "id": ailment.id,
            "shortDescription": {"text": ailment.healthy},
            "fullDescription": {"text": f"{ailment.healthy}. Why: {ailment.why}."},
            "help": {"text": f"{ailment.fix}. Source: {ailment.source}."},
            "defaultConfiguration": {"level": _LEVELS[ailment.severity]},
        }
        for ailment in catalogue
    ]


def _result(check: Check, host: str, place: int, known: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": kind(check),
        "ruleIndex": place,
        "level": _LEVELS[check.severity],
        "message": {"text": f"{host}: {check.observed}. Why it matters: {check.why}. Fix: {check.fix}."},
        "locations": [_location(check.evidence[0])] if check.evidence else [],
        "relatedLocations": [
            {**_location(item), "message": {"text": f"{item.where}: {item.value}"}} for item in check.evidence[1:]
        ],
        "partialFingerprints": {"evenkeel/v1": digest([host, check.id, check.observed])},
    }
    if known:
        result["suppressions"] = [{"kind": "external", "justification": "accepted by the owner (--accept)"}]
    return result


def _location(item: EvidenceItem) -> dict[str, Any]:
    """``/proc/cmdline: isolcpus`` is a file and a place in it; ``guest plc, thread ...`` is no file."""
    path, _, inside = item.where.partition(": ")
    if not path.startswith("/"):
        return {"logicalLocations": [{"fullyQualifiedName": item.where}]}
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(path.lstrip("/")), "uriBaseId": _BASE}}
    if not path.endswith((".xml", ".cfg", ".conf")):  # the files of the kernel have one line
        physical["region"] = {"startLine": 1, "snippet": {"text": item.value}}
    location: dict[str, Any] = {"physicalLocation": physical}
    if inside:
        location["logicalLocations"] = [{"fullyQualifiedName": inside}]
    return location
