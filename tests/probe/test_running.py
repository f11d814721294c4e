"""Which guests run, and where: from /proc alone, whoever started them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.running import running_guests


def guest(root: Path, process: int, name: str, threads: dict[str, str], comm: str = "qemu-system-x86") -> None:
    """A QEMU process whose threads (name -> allowed CPUs) look as the kernel shows them."""
    folder = root / "proc" / str(process)
    for number, (thread, cpus) in enumerate(threads.items()):
        task = folder / "task" / str(process + number)
        task.mkdir(parents=True)
        (task / "comm").write_text(thread + "\n")
        (task / "status").write_text(f"Name:\t{thread}\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\n")
    (folder / "comm").write_text(comm + "\n")
    (folder / "cmdline").write_text(f"/usr/bin/{comm}\0-name\0{name}\0-m\0512\0")


def test_the_cpus_of_the_vcpus_are_those_of_the_guest(tmp_path: Path) -> None:
    guest(tmp_path, 400, "guest=plc,debug-threads=on", {"qemu": "0-1", "CPU 0/KVM": "2", "CPU 1/KVM": "3"})
    guest(tmp_path, 300, "by-hand", {"qemu-system-x86": "0-7"})  # no names: nobody can say which thread is a vCPU
    guest(tmp_path, 500, "guest=x", {"bash": "0-7"}, comm="bash")
    (tmp_path / "proc/600").mkdir()  # it ended while we looked
    assert running_guests(str(tmp_path)) == [
        {"name": "by-hand", "process": 300, "cpus": "0-7"},
        {"name": "plc", "process": 400, "cpus": "2-3"},
    ]


def test_a_real_process_is_found_where_it_may_run(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-tst"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([str(program), "600"]) as process:
        try:
            # Popen returns before the kernel has given the process the name of its program.
            for _ in range(1000):
                if Path(f"/proc/{process.pid}/comm").read_text().strip() == program.name[:15]:
                    break
                time.sleep(0.01)
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
            mine = [one for one in running_guests() if one["process"] == process.pid]
            expected = format_list({min(os.sched_getaffinity(0))})
            assert mine == [{"name": f"process {process.pid}", "process": process.pid, "cpus": expected}]
        finally:
            process.kill()
