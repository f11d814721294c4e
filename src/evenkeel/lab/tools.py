"""What an agent's machine offers to steps: the label ``tool``, which the predicate ``agent`` of a step asks for.

Programs that the shipped steps need, or that people often ask for; and ``kernel-ARCH`` where modules can be built for
that architecture.  A step whose tool no agent offers waits, and the lab says why, instead of failing somewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from evenkeel.lab.kernel_headers import PORTS
from evenkeel.lab.runner import PATH

PROGRAMS = (
    *("abidiff", "bwrap", "ccache", "clang", "docker", "gcc", "git", "make", "pahole", "podman", "python3", "rustc"),
    *("sparse", "qemu-system-aarch64", "qemu-system-x86_64"),
)


def tools_here(which: Callable[[str], str | None] = lambda name: shutil.which(name, path=PATH)) -> list[str]:
    """Sorted.  Looks where the runner looks."""
    found = [name for name in PROGRAMS if which(name)]
    if which("make"):
        found += [f"kernel-{arch}" for arch, port in PORTS.items() if which(f"{port.triplet}-gcc-12")]
    return sorted(found)
