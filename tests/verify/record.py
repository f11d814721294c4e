"""Make the recordings that the tests here judge: boot a tuned virtual host, look at it once, keep what was seen.

``python -m tests.verify.record`` writes tests/verify/recorded and tests/measure/recorded anew.  What no check looks at
(PCI functions, caches, vulnerabilities) is left out, and the plan's fingerprint made again for what is left.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evenkeel.apply.hosts import read_facts
from evenkeel.documents.plan import Plan
from evenkeel.measure.host import Wish, measure_host
from evenkeel.verify.observe import Observation, Options, observe
from tests.virtual.conftest import on_host
from tests.virtual.tuned import TunedHost, tuned

HERE = Path(__file__).parent / "recorded"
MEASURED = Path(__file__).parents[1] / "measure" / "recorded"
LEFT_OUT = ("pci", "caches", "blocks", "nics", "vulnerabilities", "partitions", "owners", "kvm_parameters")


def record(host: TunedHost) -> None:
    with host.machine.probe() as probe:
        facts = read_facts(probe)
        seen = observe(host.host, probe, facts, Options())
        measured = measure_host(host.host, probe, facts, moment="after", wish=Wish(seconds=2))
        (on_cpu,) = probe.call("together", jobs=[{"tool": "cyclictest", "cpus": [host.cpu, 0]}], seconds=2)["jobs"]
        inside = {"tool": "cyclictest", "guest": "plc", "vcpus": [1]}
        (in_guest,) = probe.call("together", jobs=[inside], seconds=2)["jobs"]
    small = facts.model_copy(update={name: type(getattr(facts, name))() for name in LEFT_OUT})
    plan = host.plan.model_copy(update={"hosts": (host.host.model_copy(update={"fingerprint": small.fingerprint()}),)})
    HERE.mkdir(exist_ok=True)
    MEASURED.mkdir(exist_ok=True)
    (HERE / "plan.json").write_text(plan.to_json())
    rest = {key: value for key, value in asdict(seen).items() if key != "facts"}
    _save(HERE / "observation.json", {"facts": small.model_dump(mode="json"), **rest})
    _save(MEASURED / "cyclictest-host.json", on_cpu)
    _save(MEASURED / "cyclictest-guest.json", in_guest)
    _save(MEASURED / "evidence.json", measured.model_dump(mode="json"))
    (HERE / "interrupts.txt").write_text(on_host(host.machine, "cat /proc/interrupts") + "\n")
    (HERE / "numa_maps.txt").write_text(host.run("grep -e huge -e heap -e stack /proc/$qemu/numa_maps") + "\n")
    (HERE / "stat.txt").write_text(host.run("cat /proc/$tid/stat") + "\n")
    (HERE / "status.txt").write_text(host.run("cat /proc/$tid/status") + "\n")


def _save(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def load() -> tuple[Plan, Observation]:
    """The recording, as :func:`evenkeel.verify.host.findings` takes it."""
    from evenkeel.documents.facts import Facts
    from evenkeel.verify.observe import GuestSeen

    plan = Plan.from_json((HERE / "plan.json").read_text(), file="plan.json")
    raw = json.loads((HERE / "observation.json").read_text())
    facts = Facts.model_validate(raw.pop("facts"))
    guests = {name: GuestSeen(**guest) for name, guest in raw.pop("guests").items()}
    return plan, Observation(facts=facts, guests=guests, **raw)


if __name__ == "__main__":
    with tuned("record") as tuned_host:
        record(tuned_host)
