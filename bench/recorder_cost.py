"""What recording costs a guest, beside cyclictest in the same guest: ``python bench/recorder_cost.py PLAN GUEST``.

The recorder runs in the guest as `evenkeel spikes` runs it; then cyclictest with a timer of the same period, on the
same vCPU; so in turns.  Shown is CPU time as a share of one vCPU, in the middle of the rounds and from the least to the
most: of the recorder with all that it starts (the goal: 3 % at most), of these programs alone, of the kernel's timerlat
thread, of cyclictest.
The guest must run, with its agent and cyclictest.  ``--virtual`` takes no plan: it makes a virtual host, tunes it as
the tests do, and removes it in the end (about eight minutes; in emulation all three are dearer than on hardware).
``--here`` takes no guest: the recorder runs on this machine itself, without emulation, on the scheduler's events beside
a cyclictest of the same period, which are as many bytes a second as timerlat's.  Without any nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evenkeel.documents.plan import Plan
from evenkeel.machines.address import resolve
from evenkeel.machines.protocol import Probe
from evenkeel.measure.guest import guest_call, guest_exec

PERIOD_US = 1000
#: Share of a vCPU that the recorder may take.
GOAL = 0.03
#: A guest that still boots is waited for so long; in emulation it was seen to take a minute.
BOOT_S = 200.0
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
    parser.add_argument("--virtual", action="store_true", help="on a virtual host that is made for it")
    parser.add_argument("--here", action="store_true", help="on this machine itself, on the scheduler's events")
    parser.add_argument("--for", dest="seconds", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, in turns (default 3)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.here:
            return told(here(arguments.seconds, arguments.rounds), "this machine itself", arguments)
        if arguments.virtual:
            from tests.virtual.tuned import tuned

            plan, guest = stack.enter_context(tuned("recorder-cost")).plan, "plc"
        elif arguments.plan and arguments.guest:
            plan = Plan.from_json(arguments.plan.read_text(), file=str(arguments.plan))
            guest = arguments.guest
        else:
            print("not measured: say a plan that is applied and one of its guests, which runs; or --virtual; or --here")
            return 0
        return told(measure(plan, guest, arguments.seconds, arguments.rounds), f"guest {guest}", arguments)


def told(found: dict[str, list[float]], where: str, arguments: argparse.Namespace) -> int:
    middle = {name: statistics.median(shares) for name, shares in found.items()}
    if arguments.json:
        print(json.dumps({"rounds": found, "goal": GOAL, "met": middle["recorder"] <= GOAL}, indent=2))
        return 0
    print(f"{where}, {arguments.rounds} times {arguments.seconds} s each, a timer of {PERIOD_US} us; of one CPU")
    for name, shares in found.items():
        if name == "bytes":
            print(f"recorded   {middle[name] / 1e3:7.0f} kB a second")
            continue
        goal = f"   goal {GOAL:.0%}" if name == "recorder" else ""
        print(f"{name:10} {middle[name]:7.2%}   ({min(shares):.2%} to {max(shares):.2%}){goal}")
    print(f"ratio      {middle['recorder'] / middle['cyclictest']:7.2f}   (recorder / cyclictest)")
    return 0


def here(seconds: int, rounds: int) -> dict[str, list[float]]:
    """On this machine itself: CPU time as shares of a CPU, and bytes a second that were recorded."""
    from tests.probe import guest_here

    from evenkeel.probe import recording_guest
    from evenkeel.probe.trace import tracefs

    found: dict[str, list[float]] = {"recorder": [], "programs": [], "cyclictest": [], "bytes": []}
    # A mount of this process alone has no other path for the shell.
    real = Path(tracefs.root().replace("/self/", f"/{os.getpid()}/"))
    with tempfile.TemporaryDirectory() as folder:
        tracing, files = Path(folder) / "guest", Path(folder) / "files"
        guest_here.make_tracing(tracing, real)
        script = guest_here.script(tracing, files, f"recorder-cost-{os.getpid()}-")
        words = [str(seconds + 60), str(PERIOD_US), "0", "4096", "64", "0"]
        for _ in range(rounds):
            with (
                subprocess.Popen(timer_words(seconds + 60, 0), stdout=subprocess.DEVNULL) as timer,
                subprocess.Popen(["/bin/sh", "-c", recording_guest._SHELL, "evenkeel", script, *words]) as recorder,
            ):
                try:
                    while not (files / "started").exists():
                        assert recorder.poll() is None, "the recorder did not start"
                        time.sleep(0.05)
                    begun, before = time.monotonic(), (ticks(recorder.pid), ticks(timer.pid))
                    time.sleep(seconds)
                    spent, after = time.monotonic() - begun, (ticks(recorder.pid), ticks(timer.pid))
                    (files / "stop").touch()
                    recorder.wait(60)
                finally:
                    timer.kill()
                    recorder.terminate()
            with tarfile.open(files / recording_guest.ARCHIVE) as archive:
                size = sum(one.size for one in archive if one.name.endswith(".raw"))
            own, programs = (after[0][n] - before[0][n] for n in (0, 1))
            found["recorder"].append((own + programs) / spent)
            found["programs"].append(programs / spent)
            found["cyclictest"].append((after[1][0] - before[1][0]) / spent)
            found["bytes"].append(size / spent)
    return found


def ticks(pid: int) -> tuple[float, float]:
    """Seconds of CPU of a process of this machine, and of its children that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, of_user, of_system = (int(word) / os.sysconf("SC_CLK_TCK") for word in words[11:15])
    return user + system, of_user + of_system


def timer_words(seconds: int, cpu: int) -> list[str]:
    return ["cyclictest", "-q", "-m", "-p95", f"-i{PERIOD_US}", f"-D{seconds}", f"-a{cpu}", "-t1"]


def measure(plan: Plan, guest: str, seconds: int, rounds: int) -> dict[str, list[float]]:
    host, wanted = next((host, one) for host in plan.hosts for one in host.guests if one.name == guest)
    vcpus = list(wanted.realtime_vcpus) or [0]
    machine = resolve(host.address)
    found: dict[str, list[float]] = {"recorder": [], "programs": [], "timerlat": [], "cyclictest": []}
    try:
        with machine.probe() as probe:
            for _ in range(rounds):
                for name, share in recording(probe, guest, vcpus, seconds).items():
                    found[name].append(share)
                found["cyclictest"].append(cyclictest(probe, guest, vcpus, seconds))
        return found
    finally:
        machine.close()


def recording(probe: Probe, guest: str, vcpus: list[int], seconds: int) -> dict[str, float]:
    started = guest_call(
        probe,
        guest,
        "recording_guest_start",
        vcpus=vcpus,
        seconds=seconds + 300,
        period_us=PERIOD_US,
        limit_s=BOOT_S,
        timeout_s=BOOT_S + 60,
    )
    try:
        first = look(probe, guest, started["pid"])
        time.sleep(seconds)
        last = look(probe, guest, started["pid"])
    finally:
        guest_call(probe, guest, "recording_guest_stop", pid=started["pid"])
        guest_call(probe, guest, "recording_guest_clean")
    spent, own, programs, timerlat = (after - before for before, after in zip(first, last, strict=True))
    return {
        "recorder": (own + programs) / spent,
        "programs": programs / spent,
        "timerlat": timerlat / spent / len(vcpus),
    }


def look(probe: Probe, guest: str, pid: int) -> tuple[float, float, float, float]:
    """Seconds: since the guest has booted, of the recorder, of what it has started, of all threads of timerlat."""
    ran = guest_exec(probe, guest, ["/bin/sh", "-c", LOOK.format(pid=pid)])
    uptime, ticks, *threads = ran.stdout.splitlines()
    spent = [int(one) / 100 for one in ticks.split()]
    return float(uptime.split()[0]), sum(spent[:2]), sum(spent[2:]), sum(map(int, threads)) / 1e9


def cyclictest(probe: Probe, guest: str, vcpus: list[int], seconds: int) -> float:
    words = timer_words(seconds, vcpus[0])
    # Of what the shell has waited for: user and system time in hundredths of a second.
    told = "read -r line </proc/$$/stat; set -- ${line##*) }; echo ${14} ${15}"
    ran = guest_exec(
        probe, guest, ["/bin/sh", "-c", f"{shlex.join(words)} >/dev/null & wait; {told}"], timeout_s=seconds + 60.0
    )
    return sum(map(int, ran.stdout.split())) / 100 / seconds


if __name__ == "__main__":
    sys.exit(main())
