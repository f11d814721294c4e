"""How long the doctor takes beside lstopo, on a constructed host with 256 CPUs: ``python bench/doctor.py``.

Both run as whole processes on the same tree (lstopo through HWLOC_FSROOT), in turns, so that load on the machine falls
on both.  The tree is made here: a server with 2 sockets, 256 CPUs, the kernel threads, interrupts, partitions and 60
guests of a real one, most of which lstopo does not read.  The doctor must name the one fault that is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LSTOPO = ("lstopo-no-graphics", "lstopo")
CPUS, GUESTS, INTERRUPTS = 256, 60, 600
_CPU = "/sys/devices/system/cpu"
_NODE = "/sys/devices/system/node"
_KERNEL = 0x00200040
_THREADS = ("cpuhp", "idle_inject", "migration", "ksoftirqd", "irq_work", "ktimers", "rcuc", "backlog_napi", "rcuop")
_PRIORITY = {"migration": 99, "idle_inject": 50, "irq_work": 11, "ktimers": 11, "rcuc": 11, "ksoftirqd": 11}
#: Housekeeping: two cores of each node, with both threads; CPU n and n + 128 are one core.
_HOUSEKEEPING = (0, 1, 64, 65, 128, 129, 192, 193)
_ISOLATED = "2-63,66-127,130-191,194-255"


def tree() -> dict[str, str]:
    """Path -> content of the host; its one fault: a vCPU at FIFO 1."""
    files = {
        f"{_CPU}/present": f"0-{CPUS - 1}",
        f"{_CPU}/possible": f"0-{CPUS - 1}",
        f"{_CPU}/online": f"0-{CPUS - 1}",
        f"{_CPU}/isolated": "",
        f"{_CPU}/nohz_full": _ISOLATED,
        f"{_NODE}/online": "0-1",
        f"{_NODE}/possible": "0-1",
        "/proc/cmdline": f"root=x isolcpus=managed_irq,{_ISOLATED} nohz_full={_ISOLATED} irqaffinity=0-1,64-65",
        "/proc/sys/kernel/osrelease": "6.12.100-rt",
        "/proc/sys/kernel/version": "#1 SMP PREEMPT_RT",
        "/proc/sys/kernel/sched_rt_runtime_us": "950000",
        "/proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
        "/proc/irq/default_smp_affinity": "3",
    }
    for cpu in range(CPUS):
        files.update(_cpu(cpu))
    for node in range(2):
        low = node * 64
        files[f"{_NODE}/node{node}/cpulist"] = f"{low}-{low + 63},{low + 128}-{low + 191}"
        files[f"{_NODE}/node{node}/distance"] = "10 21" if node == 0 else "21 10"
        files[f"{_NODE}/node{node}/meminfo"] = f"Node {node} MemTotal: 536870912 kB"
    for number in range(INTERRUPTS):
        here = f"/proc/irq/{number + 24}"
        files[f"{here}/smp_affinity_list"] = files[f"{here}/effective_affinity_list"] = "0"
        files[f"/sys/kernel/irq/{number + 24}/actions"] = f"eth0-rx-{number}"
    for guest in range(GUESTS):
        files.update(_guest(guest))
    return files


def _cpu(cpu: int) -> dict[str, str]:
    here, core = f"{_CPU}/cpu{cpu}", cpu % 128
    pair = f"{core},{core + 128}"
    package = core // 64
    files = {
        f"{here}/online": "1",
        f"{here}/topology/physical_package_id": str(package),
        f"{here}/topology/core_id": str(core % 64),
        f"{here}/topology/thread_siblings_list": pair,
        f"{here}/topology/thread_siblings": _mask(core, core + 128),
        f"{here}/topology/core_cpus": _mask(core, core + 128),
        f"{here}/topology/package_cpus": _mask(*(c for c in range(CPUS) if c % 128 // 64 == package)),
        f"{here}/power/pm_qos_resume_latency_us": "0",
        f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime": "50000000",
        f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/period": "1000000000",
    }
    for index, (level, kind, size) in enumerate(
        ((1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M"), (3, "Unified", "96M"))
    ):
        cache = f"{here}/cache/index{index}"
        shared = _mask(core, core + 128) if level < 3 else files[f"{here}/topology/package_cpus"]
        files |= {
            f"{cache}/level": str(level),
            f"{cache}/type": kind,
            f"{cache}/size": size,
            f"{cache}/shared_cpu_map": shared,
            f"{cache}/coherency_line_size": "64",
        }
    for place, name in enumerate(_THREADS):
        priority = _PRIORITY.get(name, 0)
        files.update(_task(1000 + cpu * 16 + place, f"{name}/{cpu}", priority, str(cpu), flags=_KERNEL))
    return files


def _guest(number: int) -> dict[str, str]:
    """Two vCPUs on a core each, the second one real-time; the first guest at the wrong priority."""
    pid, name = 100_000 + number * 100, f"guest{number}"
    first = (2 if number < 30 else 66) + number % 30 * 2
    files = _task(pid, "qemu-system-x86", 0, "0")
    files[f"/proc/{pid}/cmdline"] = f"qemu\0-name\0guest={name},debug-threads=on\0"
    files.update(_task(pid, "qemu-system-x86", 0, "0", folder=f"/proc/{pid}/task/{pid}"))
    for vcpu in range(2):
        priority = (1 if number == 0 else 2) if vcpu else 0
        here = f"/proc/{pid}/task/{pid + 1 + vcpu}"
        files.update(_task(pid + 1 + vcpu, f"CPU {vcpu}/KVM", priority, str(first + vcpu), folder=here))
    files[f"/etc/libvirt/qemu/{name}.xml"] = (
        f"<domain type='kvm'><name>{name}</name><memory unit='MiB'>1024</memory><vcpu>2</vcpu><cputune>"
        f"<vcpupin vcpu='0' cpuset='{first}'/><vcpupin vcpu='1' cpuset='{first + 1}'/><emulatorpin cpuset='0'/>"
        f"</cputune><numatune><memory mode='strict' nodeset='{number // 30}'/></numatune></domain>"
    )
    return files


def _task(pid: int, name: str, priority: int, cpus: str, *, flags: int = 0, folder: str = "") -> dict[str, str]:
    fields = ["S", "2", *["0"] * 4, str(flags), *["0"] * 30, str(priority), "1" if priority else "0", *["0"] * 11]
    here = folder or f"/proc/{pid}"
    return {
        f"{here}/stat": f"{pid} ({name}) {' '.join(fields)}",
        f"{here}/status": f"Name:\t{name}\nCpus_allowed_list:\t{cpus}",
    }


def _mask(*cpus: int) -> str:
    digits = f"{sum(1 << cpu for cpu in cpus):0{CPUS // 4}x}"
    return ",".join(digits[place : place + 8] for place in range(0, len(digits), 8))


def plant(folder: Path) -> int:
    files = tree()
    for path, content in files.items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content + "\n")
    return len(files)


def run(command: list[str], environment: dict[str, str]) -> tuple[float, subprocess.CompletedProcess[bytes]]:
    """Seconds, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return time.perf_counter() - started, done


def compare(root: Path, lstopo: str | None, runs: int) -> dict[str, float]:
    """Medians in seconds of ``runs`` runs in turns, after one of each that is not counted."""
    environment = {**os.environ, "HWLOC_FSROOT": str(root), "HWLOC_THISSYSTEM": "0"}
    ours = [sys.executable, "-m", "evenkeel", "doctor", str(root), "--json"]
    mine: list[float] = []
    its: list[float] = []
    for number in range(runs + 1):
        seconds, done = run(ours, environment)
        assert done.returncode == 1, done.stderr.decode()
        found = [check["id"] for check in json.loads(done.stdout)["checks"] if check["status"] == "failed"]
        assert found == ["D-RT-ONE:guest0"], f"the doctor found {found}"
        mine += [seconds] if number else []
        if lstopo:
            seconds, done = run([lstopo, "--of", "xml"], environment)
            assert done.stdout.count(b'type="PU"') == CPUS, "lstopo did not read the same tree"
            its += [seconds] if number else []
    result: dict[str, float] = {"cpus": CPUS, "doctor_s": statistics.median(mine), "runs": runs}
    if its:
        result["lstopo_s"] = statistics.median(its)
        result["ratio"] = statistics.median(one / other for one, other in zip(mine, its, strict=True))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each, in turns (default 7)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    lstopo = next((path for name in LSTOPO if (path := shutil.which(name))), None)
    if lstopo is None:
        print("missing: lstopo; apt-get install hwloc-nox", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="evenkeel-bench-") as folder:
        files = plant(Path(folder))
        result = {"files": files, **compare(Path(folder), lstopo, arguments.runs)}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{CPUS} CPUs, {GUESTS} guests, {files} files, {arguments.runs} runs of each in turns")
    print(f"doctor  {result['doctor_s']:6.3f} s  (median, whole process)")
    if "ratio" in result:
        print(f"lstopo  {result['lstopo_s']:6.3f} s")
        print(f"ratio   {result['ratio']:6.2f}    (median of doctor / lstopo)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
