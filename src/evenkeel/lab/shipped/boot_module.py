"""Step boot-module: load modules in a virtual host, and look at the kernel's log.

boot_module.py MODULES TOPOLOGY SECONDS OUT
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from evenkeel.errors import EvenkeelError
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.spec import BUILT_IN

#: What a kernel prints when something is wrong with it (lib/bug.c, kernel/panic.c, lockdep, stall detectors).
TROUBLE = re.compile(
    r"WARNING:|BUG:|Oops|general protection fault|Call Trace|INFO: (?:task .* blocked|rcu_\w+ detected stalls)|"
    r"soft lockup|possible circular locking|refcount_t: "
)


@contextlib.contextmanager
def host(topology: str) -> Iterator[str]:
    """A booted virtual host of our own, removed whatever happens."""
    name = f"step-{os.getpid()}"
    lifecycle.create(name, BUILT_IN[topology])
    try:
        lifecycle.start(name)
        yield name
    finally:
        with contextlib.suppress(EvenkeelError):
            lifecycle.remove(name)


def ssh(name: str, command: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "evenkeel", "virtual", "ssh", name, "--", command]
    return subprocess.run(words, input=data if data is not None else b"", capture_output=True, check=False)


def kernel_log(name: str) -> list[str]:
    return ssh(name, "dmesg").stdout.decode(errors="replace").splitlines()


def try_module(name: str, module: Path, seconds: float, before: list[str]) -> tuple[dict[str, object], list[str]]:
    """Load it, wait, unload it; what came of that, and the lines that the kernel said meanwhile."""
    there = f"/tmp/{module.name}"
    for command, data, what in (
        (f"cat > {there}", module.read_bytes(), "copied"),
        (f"insmod {there}", None, "loaded"),
    ):
        done = ssh(name, command, data)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            print(f"{module.name} cannot be {what}: {said}", file=sys.stderr)
            return {"loaded": False, "unloaded": False, "why": said}, kernel_log(name)[len(before) :]
    time.sleep(seconds)
    done = ssh(name, f"rmmod {module.stem.replace('-', '_')}")
    lines = kernel_log(name)[len(before) :]
    return {"loaded": True, "unloaded": done.returncode == 0}, lines


def main() -> int:
    modules, topology, seconds, out = sorted(Path(sys.argv[1]).glob("*.ko")), *sys.argv[2:4], Path(sys.argv[4])
    answer: dict[str, object] = {"booted": False}
    found: dict[str, dict[str, object]] = {}
    trouble: list[str] = []
    console: Path | None = None
    try:
        with host(topology) as name:
            console = lifecycle.folder_of(name) / "serial.log"
            release = ssh(name, "uname -r").stdout.decode().strip()
            print(f"booted {release}, {len(modules)} modules")
            answer |= {"booted": True, "release": release}
            everything = kernel_log(name)
            # What the kernel says of this machine at boot is not the modules' doing.
            for module in modules:
                found[module.stem], lines = try_module(name, module, float(seconds), everything)
                everything += lines
                trouble += [re.sub(r"^\[[^]]*\] ", "", line) for line in lines if TROUBLE.search(line)]
                print("\n".join(lines))
            (out / "dmesg.txt").write_text("\n".join(everything) + "\n")
            if console.exists():
                shutil.copyfile(console, out / "console.log")
    except EvenkeelError as error:
        print(f"the virtual host did not come up: {error}", file=sys.stderr)
    answer |= {"modules": found, "trouble": len(trouble)}
    (out / "output.json").write_text(json.dumps(answer, indent=2))
    good = found and all(one["loaded"] and one["unloaded"] for one in found.values()) and not trouble
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
