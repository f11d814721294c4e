"""A plan for this very machine that wants nothing of it but one value of a network namespace, so that it may drift.

Everything is real: kernel, probe, netlink.  ``/proc/sys/net/core/rps_default_mask`` and the links belong to the
namespace that a test makes for itself; nothing outside of it changes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from evenkeel.apply.hosts import read_facts
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import FileValue, HostPlan, Ledger, Phase, Plan, Setting
from evenkeel.machines.local import LocalMachine
from tests.waiting import until

MASK = "/proc/sys/net/core/rps_default_mask"


def setting(identifier: str, path: str, new: str, *, disturbance: str = "live") -> Setting:
    return Setting.model_validate(
        {
            "id": identifier,
            "rule": identifier,
            "title": f"title of {identifier}",
            "target": FileValue(path=path, compare="cpumask" if path == MASK else "integer"),
            "old": None,
            "new": new,
            "status": "satisfied",
            "phase": Phase.INTERRUPTS,
            "disturbance": disturbance,
            "reason": "",
            "verification": "",
            "risk": "",
            "source": "",
        }
    )


def facts() -> Facts:
    with LocalMachine().probe() as probe:
        return read_facts(probe)


def make_plan(*settings: Setting, address: str = "local") -> Plan:
    """All CPUs are for housekeeping; of the namespace one mask is wanted to be 0, which it is at first."""
    found = facts()
    host = HostPlan(
        name="here",
        address=address,
        fingerprint=found.fingerprint(),
        facts_sha256=found.sha256(),
        kernel_release=found.kernel.release,
        preempt_rt=found.kernel.preempt_rt,
        ledger=Ledger(housekeeping=found.online),
        settings=settings or (setting("R-NET", MASK, "0"),),
    )
    return Plan(site_sha256="0" * 64, hosts=(host,))


@contextlib.contextmanager
def namespace() -> Iterator[list[str]]:
    """Words to put before a command so that it runs in a network namespace of its own."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    enter = ["nsenter", f"--target={holder.pid}", "--net"]
    try:
        mine, its = Path("/proc/self/ns/net").readlink(), Path(f"/proc/{holder.pid}/ns/net")
        until(lambda: holder.poll() is not None or its.readlink() != mine, told=lambda: "no network namespace")
        assert holder.poll() is None, "no network namespace"
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
        yield enter
    finally:
        holder.kill()
        holder.wait()


def evenkeel(*words: str) -> list[str]:
    return [sys.executable, "-m", "evenkeel", *words]
