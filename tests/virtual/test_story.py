"""The story of docs/how-to/from-miss-to-cure.md, lived through: late samples, their cause, the doctor, the cure.

Run by the verbs, as a reader does it.  No latency is asserted, it is emulated; who took the time is.  What it saw is
printed, and appended to the file STORY.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.virtual.tuned import TunedHost

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.explanation import Cause, Explanation, Kind

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(1800)]

#: What a colleague did "to make QEMU faster": its main thread beside the vCPU, at FIFO 50.
MISTAKE = "echo $qemu > $scope/vcpu1/cgroup.threads; taskset -p -c {cpu} $qemu >/dev/null; chrt -f -p 50 $qemu"
#: As the finding says: off the CPU of the real-time vCPU, and back to ordinary priority.
CURE = "echo $qemu > $scope/emulator/cgroup.threads; taskset -p -c {home} $qemu >/dev/null; chrt -o -p 0 $qemu"
#: A monitoring agent, which asks QEMU something long each second or so.
MONITORING = (
    "for n in $(seq 12); do virsh -q qemu-monitor-command plc --hmp 'info mtree -f' >/dev/null; sleep 0.6; done"
)
OVER = "1500us"


def evenkeel(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evenkeel", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(autouse=True)
def tracing(tmp_path: Path) -> Iterator[None]:
    """tracefs on this machine: what it does to the CPUs of the host is part of the truth."""
    folder = tmp_path / "tracing"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "tracefs", str(folder)], check=True)
    yield
    subprocess.run(["umount", str(folder)], check=True)


def explained(host: TunedHost, plan: Path, saved: Path) -> tuple[Explanation, str]:
    """`evenkeel spikes` while the monitoring agent asks; the document, and what the terminal shows."""
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(host.run, "sleep 3\n" + MONITORING)
        times = ("--for", "12s", "--period", "2ms", "--over", OVER)
        done = evenkeel("spikes", plan, "plc", *times, "-o", saved, "--heat-map", f"{saved}.svg")
        asking.result()
    assert done.returncode == 0, done.stderr
    return Explanation.from_json(saved.read_text(), file=saved.name), done.stdout


def emulator(found: Explanation) -> Cause | None:
    return next((cause for cause in found.causes if cause.kind == Kind.emulator and "qemu" in cause.who), None)


def harmful(host: TunedHost) -> tuple[int, list[str], str]:
    done = evenkeel("doctor", f"virtual:{host.machine.name}", "--json")
    checks = json.loads(done.stdout)["checks"]
    names = [one["id"] for one in checks if one["status"] == "failed" and one["severity"] == "harmful"]
    return done.returncode, names, evenkeel("doctor", f"virtual:{host.machine.name}").stdout


def test_a_missed_deadline_its_cause_and_its_cure(tuned_host: TunedHost, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(tuned_host.plan.to_json())
    told: list[str] = []

    def tell(title: str, text: str) -> None:
        told.append(f"## {title}\n{text}")

    words = {"cpu": tuned_host.cpu, "home": format_cpus(tuned_host.plc.emulator_cpus)}
    tuned_host.run(MISTAKE.format(**words))
    try:
        before, shown = explained(tuned_host, plan, tmp_path / "before.json")
        tell("spikes, before", shown)
        code, names, said = harmful(tuned_host)
        tell(f"doctor, before: exit code {code}, harmful: {names}", said)
    finally:
        tuned_host.run(CURE.format(**words))
    assert code == 1 and any(name.startswith("D-EMULATOR") for name in names)
    after, shown = explained(tuned_host, plan, tmp_path / "after.json")
    tell("spikes, after", shown)
    code, names, said = harmful(tuned_host)
    tell(f"doctor, after: exit code {code}, harmful: {names}", said)

    cause, left = emulator(before), emulator(after)
    tell("emulator", f"before: {cause}\nafter: {left}\nsamples: {before.samples}, {after.samples}")
    print("\n".join(told))
    if path := os.environ.get("STORY"):
        with Path(path).open("a") as file:
            file.write("\n".join(told) + "\n")
    assert cause is not None and cause.spikes >= 4 and "G-2" in {one.rule for one in cause.allowed}
    assert before.samples > 500 and after.samples > 500
    assert code == 0 and names == []
    assert left is None or left.ns * 20 < cause.ns, "its threads may run on their own CPUs only, and are no cause there"
    assert (tmp_path / "after.json.svg").read_text().startswith("<svg")
