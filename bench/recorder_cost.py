"""What recording costs a guest, beside cyclictest in the same guest: ``python bench/recorder_cost.py PLAN GUEST``.

The recorder runs in the guest as `evenkeel spikes` runs it; then cyclictest with a timer of the same period, on the
same vCPU.  Shown is CPU time as a share of one vCPU: of the recorder with all that it starts, of the kernel's timerlat
thread, of cyclictest.  The guest must run, with its agent and cyclictest.  Without a plan nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from evenkeel.documents.plan import Plan
from evenkeel.machines.address import resolve
from evenkeel.machines.protocol import Probe
from evenkeel.measure.guest import guest_call, guest_exec

PERIOD_US = 1000
#: One look at the guest: its uptime, what a process and its ended children took, and what each thread of timerlat took.
LOOK = r"""
cat /proc/uptime
read -r line </proc/{pid}/stat && set -- ${{line##*) }} && shift 11 && echo $1 $2 $3 $4
for t in /proc/[0-9]*; do
	read -r name 2>/dev/null <$t/comm && case $name in timerlat/*) read -r ns rest <$t/schedstat && echo $ns ;; esac
done; true
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?", type=Path)
    parser.add_argument("guest", nargs="?")
    parser.add_argument("--for", dest="seconds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.plan or not arguments.guest:
        print("not measured: say a plan that is applied and one of its guests, which runs")
        return 0
    plan = Plan.from_json(arguments.plan.read_text(), file=str(arguments.plan))
    found = measure(plan, arguments.guest, arguments.seconds)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"guest {arguments.guest}, {arguments.seconds} s each, a timer of {PERIOD_US} us; shares of one vCPU")
        for name, share in found.items():
            print(f"{name:10} {share:7.2%}")
        print(f"ratio      {found['recorder'] / found['cyclictest']:7.2f}  (recorder / cyclictest)")
    return 0


def measure(plan: Plan, guest: str, seconds: int) -> dict[str, float]:
    host, wanted = next((host, one) for host in plan.hosts for one in host.guests if one.name == guest)
    vcpus = list(wanted.realtime_vcpus) or [0]
    machine = resolve(host.address)
    try:
        with machine.probe() as probe:
            recorder, timerlat = recording(probe, guest, vcpus, seconds)
            return {"recorder": recorder, "timerlat": timerlat, "cyclictest": cyclictest(probe, guest, vcpus, seconds)}
    finally:
        machine.close()


def recording(probe: Probe, guest: str, vcpus: list[int], seconds: int) -> tuple[float, float]:
    started = guest_call(
        probe, guest, "recording_guest_start", vcpus=vcpus, seconds=seconds + 300, period_us=PERIOD_US, timeout_s=180.0
    )
    try:
        first = look(probe, guest, started["pid"])
        time.sleep(seconds)
        last = look(probe, guest, started["pid"])
    finally:
        guest_call(probe, guest, "recording_guest_stop", pid=started["pid"])
        guest_call(probe, guest, "recording_guest_clean")
    spent = last[0] - first[0]
    return (last[1] - first[1]) / spent, (last[2] - first[2]) / spent / len(vcpus)


def look(probe: Probe, guest: str, pid: int) -> tuple[float, float, float]:
    """Seconds: since the guest has booted, of the recorder, of all threads of timerlat."""
    ran = guest_exec(probe, guest, ["/bin/sh", "-c", LOOK.format(pid=pid)])
    uptime, ticks, *threads = ran.stdout.splitlines()
    return float(uptime.split()[0]), sum(map(int, ticks.split())) / 100, sum(map(int, threads)) / 1e9


def cyclictest(probe: Probe, guest: str, vcpus: list[int], seconds: int) -> float:
    words = ["cyclictest", "-q", "-m", "-p95", f"-i{PERIOD_US}", f"-D{seconds}", f"-a{vcpus[0]}", "-t1"]
    # Of what the shell has waited for: user and system time in hundredths of a second.
    told = "read -r line </proc/$$/stat; set -- ${line##*) }; echo ${14} ${15}"
    ran = guest_exec(
        probe, guest, ["/bin/sh", "-c", f"{shlex.join(words)} >/dev/null & wait; {told}"], timeout_s=seconds + 60.0
    )
    return sum(map(int, ran.stdout.split())) / 100 / seconds


if __name__ == "__main__":
    sys.exit(main())
