"""From the settings of a plan to the steps that the probe takes, in the order of taking them.  Pure.

A setting says what; a step says it in the words of :mod:`evenkeel.probe.steps`.  All boot arguments become one step,
because they go into one file; a guest gets steps of its own around its settings: start paused, resume, house of its
kernel threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import (
    BootArgument,
    Disturbance,
    FileValue,
    GuestDefinition,
    GuestPartition,
    GuestPlan,
    GuestThread,
    HostPlan,
    InterruptAffinity,
    NicChannels,
    Phase,
    ServicePlacement,
    Setting,
    ThreadSchedule,
    UnitState,
)
from evenkeel.errors import WrongInput

#: What starting a guest may take: QEMU clears all its huge pages before it answers (measured: 1 GiB/s at worst).
START_TIMEOUT_S = 660.0
UPDATE_GRUB_TIMEOUT_S = 660.0


@dataclass(frozen=True)
class Step:
    """One request to the probe.  ``name``: the id of its setting, or what it is for a step of several or none."""

    name: str
    title: str
    phase: Phase
    disturbance: Disturbance
    body: dict[str, Any]
    settings: tuple[Setting, ...] = ()
    timeout_s: float = 60.0

    @property
    def wanted(self) -> str | None:
        """The value wanted, as a person reads it."""
        if self.body["kind"] == "boot":
            return " ".join(boot_words(self.settings))
        if len(self.settings) == 1:
            return self.settings[0].new
        value = self.body.get("value", self.body.get("cpus"))
        return str(value) if value is not None else None


def host_steps(host: HostPlan, *, restart_guests: bool = False) -> tuple[Step, ...]:
    """Every step for a host, those that will find nothing to do too.  Raises WrongInput for a plan with a hole."""
    settings = [setting for setting in host.settings if setting.status != "absent"]
    steps: list[Step] = []
    for phase in Phase:
        here = [setting for setting in settings if setting.phase == phase]
        if phase is Phase.GUEST:
            steps += _guests(host, here, restart_guests)
            continue
        boot = tuple(setting for setting in here if isinstance(setting.target, BootArgument))
        if boot:
            steps.append(_boot(boot))
        steps += [_single(setting) for setting in here if not isinstance(setting.target, BootArgument)]
    return tuple(steps)


def drain_step(guest: GuestPlan) -> Step:
    """Shut a guest down before what disturbs it; its own steps start it again."""
    placed = any(vcpu.policy == "fifo" for vcpu in guest.vcpus) or guest.goal in ("performance", "realtime")
    body = {"kind": "guest_drain", "guest": guest.name, "value": "shut off", "again": not placed}
    return Step(f"{guest.name}/drain", f"Shut {guest.name} down", Phase.GUEST, "drain", body, timeout_s=150.0)


def boot_words(settings: Iterable[Setting]) -> list[str]:
    """The arguments of boot settings as they stand on a command line; what is only taken away is left out."""
    words = []
    for setting in settings:
        assert isinstance(setting.target, BootArgument)
        if setting.new is not None:
            word = f"{setting.target.key}={setting.new}" if setting.new else setting.target.key
            words.append(f"{setting.target.after} {word}" if setting.target.after else word)
    return words


def boot_settings(host: HostPlan) -> tuple[Setting, ...]:
    return tuple(s for s in host.settings if isinstance(s.target, BootArgument) and s.status != "absent")


def _boot(settings: tuple[Setting, ...]) -> Step:
    arguments = []
    for setting in settings:
        assert isinstance(setting.target, BootArgument)
        arguments.append({"key": setting.target.key, "value": setting.new, "after": setting.target.after})
    return Step(
        name="boot",
        title="Kernel command line",
        phase=Phase.BOOT,
        disturbance="reboot",
        body={"kind": "boot", "arguments": arguments},
        settings=settings,
        timeout_s=UPDATE_GRUB_TIMEOUT_S,
    )


def _single(setting: Setting) -> Step:
    return Step(
        name=setting.id,
        title=setting.title,
        phase=setting.phase,
        disturbance=setting.disturbance,
        body=_body(setting),
        settings=(setting,),
        timeout_s=150.0 if isinstance(setting.target, UnitState) else 60.0,
    )


def _body(setting: Setting) -> dict[str, Any]:
    target = setting.target
    if setting.new is None:
        raise WrongInput(f"{setting.id}: a value of the kind {target.type!r} can be set, not removed")
    match target:
        case FileValue():
            body = {"kind": "file", "path": target.path, "value": setting.new, "compare": target.compare}
            # What leaves the host's own threads less time must not starve them: the probe asks its canary.
            return {**body, "canary": True} if setting.phase is Phase.THROTTLE else body
        case InterruptAffinity():
            return {"kind": "interrupt", "action": target.action, "value": setting.new}
        case ThreadSchedule():
            return {"kind": "thread", "name": target.name, "value": setting.new}
        case UnitState():
            return {"kind": "unit", "unit": target.unit, "value": setting.new}
        case NicChannels():
            return {"kind": "channels", "nic": target.nic, "value": setting.new}
        case ServicePlacement():
            return {"kind": "service", "unit": target.unit, "process": target.process, "value": setting.new}
        case GuestPartition():
            return {"kind": "partition", "guest": target.guest, "vcpu": target.vcpu, "value": setting.new}
        case GuestThread():
            return {"kind": "guest_thread", "guest": target.guest, "vcpu": target.vcpu, "value": setting.new}
    raise WrongInput(f"{setting.id}: nothing is known that writes a target of the kind {target.type!r}")


def _guests(host: HostPlan, settings: Sequence[Setting], restart: bool) -> Iterator[Step]:
    for guest in host.guests:
        mine = [setting for setting in settings if getattr(setting.target, "guest", None) == guest.name]
        yield from _guest(guest, mine, restart)
    known = {guest.name for guest in host.guests}
    for setting in settings:
        if getattr(setting.target, "guest", None) not in known:
            raise WrongInput(f"{setting.id} belongs to no guest of the plan", hint="make the plan anew")


def _guest(guest: GuestPlan, settings: list[Setting], restart: bool) -> Iterator[Step]:
    """Define, start paused, place, give priorities, resume: no vCPU runs a single instruction in the wrong place."""
    definitions = [setting for setting in settings if isinstance(setting.target, GuestDefinition)]
    placed = [setting for setting in settings if not isinstance(setting.target, GuestDefinition)]

    def power(name: str, title: str, value: str) -> Step:
        body = {"kind": "guest_power", "guest": guest.name, "value": value}
        return Step(f"{guest.name}/{name}", title, Phase.GUEST, "live", body, timeout_s=START_TIMEOUT_S)

    for setting in definitions:
        body = {"kind": "guest", "guest": guest.name, "xml": guest.xml, "restart": restart}
        yield Step(setting.id, setting.title, Phase.GUEST, setting.disturbance, body, (setting,), START_TIMEOUT_S)
    if not placed:
        yield power("start", f"Start {guest.name}", "running")
        return
    yield power("start", f"Start {guest.name}, paused", "paused")
    yield from map(_single, placed)
    yield power("resume", f"Let {guest.name} run", "running")
    home = format_cpus(guest.emulator_cpus)
    yield Step(
        f"{guest.name}/helpers",
        f"Keep the kernel's threads for {guest.name} on housekeeping CPUs",
        Phase.GUEST,
        "live",
        {"kind": "guest_helpers", "guest": guest.name, "cpus": home, "wait_s": 3},
    )
