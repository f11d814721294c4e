"""The folder of a run: which file holds which document, and reading them back into one :class:`Run`.

A document is known by what it says it is, not by its file name; only Findings, which do not say when they were made,
are told apart by a name that contains ``before``.  Reads files and writes none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evenkeel.documents.base import Document
from evenkeel.documents.evidence import Evidence
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Findings
from evenkeel.documents.fleet import FleetPlan
from evenkeel.documents.journal import Journal
from evenkeel.documents.plan import HostPlan, Plan
from evenkeel.errors import Where, WrongInput
from evenkeel.report.verdict import HostRun, Run

# The names that `evenkeel demo` saves under.
PLAN = "plan.json"
FACTS_BEFORE, FACTS_AFTER = "facts-before.json", "facts-after.json"
EVIDENCE_BEFORE, EVIDENCE_AFTER = "evidence-before.json", "evidence-after.json"
FINDINGS_BEFORE, FINDINGS = "findings-before.json", "findings.json"
JOURNAL = "journal.json"
REPORT = "report.html"

KINDS: dict[str, type[Document]] = {
    kind.__name__: kind for kind in (Plan, FleetPlan, Facts, Findings, Evidence, Journal)
}


def load_run(paths: Sequence[Path]) -> Run:
    """The run that these files and folders hold.  Raises WrongInput: no plan, a document of another machine, ...

    In a folder, files that hold no document of a run are passed over; a file that is named must hold one.
    """
    documents = _documents(paths)
    placements = [(path, document) for path, document in documents if isinstance(document, FleetPlan)]
    if len(placements) > 1:
        raise WrongInput(
            "several placements: " + " and ".join(str(path) for path, _ in placements),
            hint="a report shows one; name its files one by one",
        )
    plans = [(path, document) for path, document in documents if isinstance(document, Plan)]
    if not plans:
        raise WrongInput(
            f"there is no Plan document in {', '.join(str(path) for path in paths)}",
            hint="a report needs the plan: evenkeel plan SITE -o plan.json",
        )
    if len({plan.sha256() for _, plan in plans}) > 1:
        raise WrongInput(
            "two different Plan documents: " + " and ".join(str(path) for path, _ in plans),
            hint="a report is about one plan; name its files one by one",
        )
    plan = plans[0][1]
    taken: dict[tuple[str, str], Path] = {}
    hosts: dict[str, HostRun] = {}
    for path, document in documents:
        if isinstance(document, Plan | FleetPlan):
            continue
        host, slot = _slot(plan, path, document)
        if (host, slot) in taken:
            raise WrongInput(
                f"{taken[host, slot]} and {path} both hold the {slot.replace('_', ' ')} of {host}",
                hint="keep one of them",
            )
        taken[host, slot] = path
        # mypy cannot see that the slot fits the document; _slot() names only slots of its kind.
        hosts[host] = replace(hosts.get(host, HostRun()), **{slot: document})  # type: ignore[arg-type]
    return Run(plan=plan, hosts=hosts, placement=placements[0][1] if placements else None)


def load_placement(paths: Sequence[Path]) -> FleetPlan | None:
    """The placement that these are about, where they hold nothing else; None: they do.  Raises WrongInput."""
    documents = [document for _, document in _documents(paths)]
    only = documents[0] if len(documents) == 1 else None
    return only if isinstance(only, FleetPlan) else None


def _documents(paths: Sequence[Path]) -> list[tuple[Path, Document]]:
    documents: list[tuple[Path, Document]] = []
    for path in paths:
        try:
            folder = path.is_dir()
        except OSError as error:  # where one may not look, or a name that is too long
            raise WrongInput(f"cannot read {path}: {error.strerror}") from None
        if folder:
            documents += [(file, found) for file in sorted(path.glob("*.json")) if (found := _read(file, named=False))]
        else:
            found = _read(path, named=True)
            assert found is not None  # a named file that holds none is an error
            documents.append((path, found))
    return documents


def _read(path: Path, *, named: bool) -> Document | None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        if named:
            raise WrongInput("not UTF-8 text", where=Where(str(path))) from None
        return None
    try:
        raw = json.loads(text)
        kind = KINDS.get(raw.get("kind", "")) if isinstance(raw, dict) else None
    except (ValueError, RecursionError, TypeError):
        # A cut-off document must be told, also in a folder: what it would have said may be the bad news.
        kind = Plan
    if kind is None:
        if named:
            raise WrongInput(f"not a document of a run ({', '.join(KINDS)})", where=Where(str(path)))
        return None
    return kind.from_json(text, file=str(path))


def _slot(plan: Plan, path: Path, document: Document) -> tuple[str, str]:
    """(host, field of HostRun) that a document belongs to."""
    names = [host.name for host in plan.hosts]
    if isinstance(document, Facts):
        return _facts_slot(plan, path, document)
    assert isinstance(document, Findings | Evidence | Journal)
    if document.host not in names:
        raise WrongInput(
            f"this is about host {document.host}, the plan is about {', '.join(names)}", where=Where(str(path))
        )
    if isinstance(document, Evidence):
        return document.host, f"evidence_{document.moment}"
    if isinstance(document, Journal):
        return document.host, "journal"
    return document.host, "findings_before" if "before" in path.stem else "findings"


def _facts_slot(plan: Plan, path: Path, facts: Facts) -> tuple[str, str]:
    digest = facts.sha256()
    for host in plan.hosts:
        if host.facts_sha256 == digest:
            return host.name, "facts_before"
    same = [host for host in plan.hosts if _same_machine(host, facts)]
    if not same:
        raise WrongInput("these facts are of a machine that the plan is not about", where=Where(str(path)))
    # Machines of one make differ by nothing but their name.
    by_name = [host for host in same if host.name == facts.identity.hostname]
    if len(same) > 1 and len(by_name) != 1:
        raise WrongInput(
            f"these facts fit {' and '.join(host.name for host in same)} alike",
            where=Where(str(path)),
            hint="leave them out, or make the report of each host by itself",
        )
    return (by_name or same)[0].name, "facts_after"


def _same_machine(host: HostPlan, facts: Facts) -> bool:
    # The kernel part may differ: a reboot into the real-time kernel is what some plans are for.
    found = facts.fingerprint()
    return all(host.fingerprint.get(part) in (None, found[part]) for part in ("machine", "memory"))
