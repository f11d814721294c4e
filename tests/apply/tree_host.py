"""A machine that is a constructed tree, behind the real probe in a process of its own, and a plan for it.

Reboots as a kernel would look from outside: a new boot id, the command line of the first entry in grub.cfg, and every
runtime value back to what it was.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import (
    BootArgument,
    FileValue,
    HostPlan,
    InterruptAffinity,
    Ledger,
    Phase,
    Plan,
    Setting,
    Target,
)
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import OnProgress, Probe
from evenkeel.probe.steps.boot import grubcfg
from tests.probe import tree

RUNTIME = ("proc", "sys", "run")


class TreeProbe:
    """The real probe; every request gets the root of the tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inner = LocalMachine().probe()

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        if op == "hello":
            return {**self.inner.call("hello"), "uid": 0, "boot_id": (self.root / BOOT_ID).read_text().strip()}
        return self.inner.call(op, on_progress=on_progress, timeout_s=timeout_s, root=str(self.root), **args)

    def close(self) -> None:
        self.inner.close()

    def __enter__(self) -> TreeProbe:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


BOOT_ID = "proc/sys/kernel/random/boot_id"


class TreeHost:
    address = "tree"
    read_only = False

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        if not self.root.exists():
            self.root.mkdir()
            tree.build(self.root)
            self._boot()
            shutil.copytree(self.root, folder / "fresh", symlinks=True)
        self.fresh = folder / "fresh"
        self.boots = 0
        #: What a boot menu, a typing error or another owner does to the command line.
        self.spoil_command_line: tuple[str, str] = ("", "")
        #: Values that the kernel gives itself under the planned command line, as nohz_full does to workqueue masks.
        self.own_values: dict[str, str] = {}

    def probe(self) -> Probe:
        return TreeProbe(self.root)

    def _boot(self) -> None:
        (self.root / BOOT_ID).write_text(f"{uuid.uuid4()}\n")
        first = grubcfg.entries((self.root / "boot/grub/grub.cfg").read_text())[0]["arguments"]
        (self.root / "proc/cmdline").write_text(first + "\n")

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        if on_progress:
            on_progress(0, 0, "rebooting")
        for name in RUNTIME:
            shutil.rmtree(self.root / name)
            shutil.copytree(self.fresh / name, self.root / name, symlinks=True)
        self._boot()
        line = (self.root / "proc/cmdline").read_text()
        (self.root / "proc/cmdline").write_text(line.replace(*self.spoil_command_line))
        # The kernel shows what it took: the list of nohz_full.
        words = [word.partition("=")[2] for word in line.split() if word.startswith("nohz_full=")]
        effective = self.root / "sys/devices/system/cpu/nohz_full"
        effective.parent.mkdir(parents=True, exist_ok=True)
        effective.write_text((words[-1] if words else " (null)") + "\n")
        for path, text in self.own_values.items():
            (self.root / path).write_text(text)
        self.boots += 1

    def close(self) -> None:
        pass

    def facts(self) -> Facts:
        with self.probe() as probe:
            return Facts.model_validate(probe.call("facts"))

    def picture(self) -> dict[str, tuple[int, bytes]]:
        """Every byte but our journal and the boot id."""
        return {name: item for name, item in tree.picture(self.root).items() if name != "/" + BOOT_ID}


def setting(identifier: str, target: Target, old: str | None, new: str | None, phase: Phase, **more: Any) -> Setting:
    return Setting(
        id=identifier,
        rule=identifier.split(":")[0],
        title=f"title of {identifier}",
        target=target,
        old=old,
        new=new,
        status=more.pop("status", "change"),
        phase=phase,
        disturbance="reboot" if phase is Phase.BOOT else "live",
        reason="",
        verification="",
        risk="",
        source="",
        **more,
    )


RUNTIME_SETTINGS = (
    setting("R-IRQ-1", InterruptAffinity(action="eth0-rx-0"), "0-7 or 4", "0-1", Phase.INTERRUPTS),
    setting(
        "R-WQ-1",
        FileValue(path="/sys/devices/virtual/workqueue/cpumask", compare="cpumask"),
        "ff",
        "f3",
        Phase.WORKQUEUES,
    ),
    setting("R-TIM-2", FileValue(path="/proc/sys/vm/stat_interval", compare="integer"), "1", "10", Phase.KERNEL),
    setting(
        "H-THP",
        FileValue(path="/sys/kernel/mm/transparent_hugepage/enabled", compare="choice"),
        "always [madvise] never",
        "never",
        Phase.MEMORY,
    ),
    setting("R-GONE", FileValue(path="/proc/sys/absent"), None, "1", Phase.KERNEL, status="absent"),
    setting(
        "R-RT-1",
        FileValue(path="/proc/sys/kernel/sched_rt_runtime_us", compare="integer"),
        "950000",
        "-1",
        Phase.THROTTLE,
    ),
)
BOOT_SETTINGS = (
    setting("H-ISO-1", BootArgument(key="isolcpus"), None, "managed_irq,2-3", Phase.BOOT),
    setting(
        "H-ISO-2",
        BootArgument(
            key="nohz_full",
            effective=FileValue(path="/sys/devices/system/cpu/nohz_full", compare="cpulist"),
        ),
        "1",
        "2-3",
        Phase.BOOT,
    ),
    setting("H-HP-1:2M", BootArgument(key="hugepages", after="hugepagesz=2M"), None, "0:64", Phase.BOOT),
)


def make_plan(host: TreeHost, *settings: Setting, **update: Any) -> Plan:
    """A plan with these settings for the tree as it is."""
    facts = host.facts()
    made = HostPlan(
        name="cell",
        address=host.address,
        fingerprint=facts.fingerprint(),
        facts_sha256=facts.sha256(),
        kernel_release=facts.kernel.release,
        preempt_rt=True,
        ledger=Ledger(housekeeping=frozenset({0, 1})),
        settings=settings,
    )
    return Plan(site_sha256="0" * 64, hosts=(made.model_copy(update=update),))
