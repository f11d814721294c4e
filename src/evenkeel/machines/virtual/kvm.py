"""Whether KVM really works here: answered by a Linux kernel that boots under it, not by the presence of /dev/kvm.

There are machines whose /dev/kvm opens, creates a VM and runs a boot sector, and still cannot run an ordinary kernel.
It must work once more inside: without nested KVM a virtual host could not start a guest, so emulation is better then.
The verdict is kept until the next reboot of this machine.  Must not decide anything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual.places import cache_dir
from evenkeel.machines.virtual.qemu import Qemu
from evenkeel.probe.boot_id import boot_id

#: A working KVM gets a kernel to its first panic in 1 to 3 s; one that needs more is no better than emulation.
_TIMEOUT_S = 25
#: The kernel got through all of its start and found, as wanted, no root file system.
_SUCCESS = ("Unable to mount root fs", "No working init found", "Kernel panic - not syncing: VFS")


@dataclass(frozen=True)
class Verdict:
    works: bool
    reason: str
    detail: str = ""  #: what QEMU or the kernel said last


def probe(qemu: Qemu, kernel: Path, on_progress: OnProgress | None = None) -> Verdict:
    """Boot ``kernel`` under KVM to the point where it misses its root file system (at most 25 s, once a boot)."""
    if not Path("/dev/kvm").exists():
        return Verdict(False, "there is no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Verdict(False, "/dev/kvm may not be opened by this user")
    key = f"{boot_id()} {qemu.text} {os.geteuid()}"
    memory = cache_dir() / "kvm.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text())
        if known["key"] == key:
            return Verdict(bool(known["works"]), str(known["reason"]), str(known["detail"]))
    if on_progress is not None:
        on_progress(0, 0, "trying whether KVM can run a kernel")
    verdict = _try(qemu, kernel)
    if verdict.works and not nested():
        verdict = Verdict(
            False,
            "KVM works here, but not in a guest of it, and a virtual host must start guests",
            "kvm_intel or kvm_amd is loaded with nested=0",
        )
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps({"key": key, **asdict(verdict)}))
    return verdict


def nested(root: Path = Path("/")) -> bool:
    """True when the loaded KVM module lets its guests use KVM."""
    files = [root / f"sys/module/{module}/parameters/nested" for module in ("kvm_intel", "kvm_amd")]
    return any(file.read_text().strip() in ("1", "Y") for file in files if file.is_file())


def _try(qemu: Qemu, kernel: Path) -> Verdict:
    with tempfile.TemporaryFile() as output:
        # Two CPUs and invtsc: what a virtual host will ask for.  panic=-1 with -no-reboot: the end of QEMU.
        process = subprocess.Popen(
            [
                qemu.program("qemu-system-x86_64"),
                *qemu.data_options,
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-machine",
                "q35,kernel-irqchip=split",
                "-accel",
                "kvm",
                "-cpu",
                "host,migratable=off,+invtsc",
                "-smp",
                "2",
                "-m",
                "512M",
                "-kernel",
                str(kernel),
                "-append",
                "console=ttyS0 panic=-1 no_timer_check",
                "-serial",
                "stdio",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **qemu.environment},
        )
        try:
            process.wait(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if any(words in text for words in _SUCCESS):
        return Verdict(True, "a kernel boots under it")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = lines[-1][:300] if lines else "no output"
    return Verdict(False, "/dev/kvm is there, but a kernel does not boot under it", detail)
