"""What the probe read back about the load beside a measurement, as a part of Evidence.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.evidence import LoadRun


def load_runs(answer: Mapping[str, Any]) -> tuple[LoadRun, ...]:
    """One for each kind of load; empty where the host was left idle.  ``answer``: of the probe."""
    return tuple(
        LoadRun(
            kind=run["kind"],
            cpus=None if run["cpus"] is None else parse_cpus(run["cpus"]),
            seen=frozenset(run["seen"]),
            processes=run["processes"],
            operations=run["operations"],
            cpu_seconds=run["cpu_seconds"],
            seconds=run["seconds"],
            packets=run.get("packets"),
            softirqs=None if run.get("softirqs") is None else frozenset(run["softirqs"]),
            trouble=run["trouble"],
        )
        for run in answer.get("loads", ())
    )
