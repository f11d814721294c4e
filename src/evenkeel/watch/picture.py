"""What is known of a host, kept up to date piece by piece: which look an event asks for, and what a look changes.

Pure: :mod:`.host` does the looking.  Judging is left to :func:`evenkeel.verify.host.findings` on the same observation
that a verification makes; only what it knows nothing of (links, owners) is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evenkeel.documents.facts import Facts, Interrupt, KernelThread
from evenkeel.documents.findings import Check, Findings
from evenkeel.documents.plan import BootArgument, FileValue, GuestPartition, HostPlan, Phase, UnitState
from evenkeel.probe import canary
from evenkeel.verify.catalogue import item
from evenkeel.verify.host import findings
from evenkeel.verify.observe import GuestSeen, Observation, Options, vcpu_cpus
from evenkeel.watch.catalogue import CANARY, LINK, OWNER, PROFILE, RIVALS

#: No spinner: a watcher must not disturb what it watches.
OPTIONS = Options(spinners=False)
What = Literal["facts", "files", "interrupts", "kernel threads", "units", "state", "threads", "memory", "intruders"]
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """One thing to look at, with one request to the probe."""

    what: What
    guest: str = ""

    def __str__(self) -> str:
        return f"{self.what} of {self.guest}" if self.guest else self.what


@dataclass(frozen=True)
class Surroundings:
    """What no plan says, now and ``before``: when watching began, or the best that it has been since."""

    links: dict[str, bool] = field(default_factory=dict)
    links_before: dict[str, bool] = field(default_factory=dict)
    owners: frozenset[str] = frozenset()
    profile: str | None = None
    profile_before: str | None = None
    started: bool = False
    #: What the canary said last: "" all is well, else what did not end; None: it was not asked.
    canary: str | None = None


@dataclass(frozen=True)
class Picture:
    seen: Observation
    around: Surroundings = Surroundings()


# -- what to look at --------------------------------------------------------------------------------------------------


def everything(host: HostPlan) -> tuple[Piece, ...]:
    """A whole sweep, in short looks, so that an event in between does not wait for its end.

    Not the memory of guests: reading numa_maps holds a lock that a page fault of the guest needs, and where pages are
    does not change while a guest runs with a strict binding.
    """
    guests = [Piece(what, guest.name) for guest in host.guests for what in ("state", "threads")]
    return (Piece("facts"), *_units(host), *guests, *_intruders(host))


def at_first(host: HostPlan) -> tuple[Piece, ...]:
    """The first sweep, and the one after a lost connection."""
    return (*everything(host), *(Piece("memory", guest.name) for guest in host.guests))


def pieces_for(event: Event, host: HostPlan) -> tuple[Piece, ...]:
    """What an event of the probe may have changed, the quickest look first."""
    if event.get("first"):
        return ()
    every_guest = tuple(Piece("threads", guest.name) for guest in host.guests)
    match event["kind"]:
        case "cpu":
            # Threads pinned there were moved, and drivers of network cards set their affinities anew (measured on
            # 6.12: virtio-net to all CPUs).
            return (*every_guest, Piece("interrupts"), Piece("files"), Piece("facts"), *_intruders(host))
        case "device":
            return (Piece("interrupts"), Piece("facts"))
        case "link":
            return (Piece("interrupts"), Piece("files"))
        case "partition":
            return (*every_guest, Piece("files"), *_intruders(host))
        case "guest" if event["what"] == "threads":
            return (Piece("threads", event["name"]),)
        case "guest":
            name = event["name"]
            return (Piece("threads", name), Piece("state", name), Piece("memory", name))
        case "interrupts":
            return (Piece("interrupts"),)
        case "owner":
            return (*_units(host), Piece("interrupts"), Piece("files"))
        case "profile":
            return (*_units(host), Piece("files"), Piece("interrupts"), Piece("kernel threads"), Piece("facts"))
        case "lost":
            return everything(host)
    return ()


def pieces_of_step(body: Mapping[str, Any], host: HostPlan) -> tuple[Piece, ...]:
    """Where to look to see that a step that was written had its effect.  ``body``: as sent to the probe."""
    match body["kind"]:
        case "file":
            return (Piece("files"),)
        case "interrupt":
            return (Piece("interrupts"),)
        case "thread":
            return (Piece("kernel threads"),)
        case "unit":
            return _units(host)
        case "partition" | "guest_thread" | "guest_helpers":
            return (Piece("threads", str(body["guest"])), Piece("files"), *_intruders(host))
    return (Piece("facts"),)


def _units(host: HostPlan) -> tuple[Piece, ...]:
    return (Piece("units"),) if any(isinstance(setting.target, UnitState) for setting in host.settings) else ()


def _intruders(host: HostPlan) -> tuple[Piece, ...]:
    return (Piece("intruders"),) if vcpu_cpus(host) else ()


def request(piece: Piece, host: HostPlan) -> tuple[str, dict[str, Any]]:
    """The operation of the probe, and its arguments."""
    match piece.what:
        case "facts":
            return "facts", {"timeout_s": 300.0}
        case "files":
            return "read", {"paths": list(planned_files(host))}
        case "interrupts" | "kernel threads":
            return "watch_look", {"part": piece.what.replace(" ", "_")}
        case "units":
            units = {setting.target.unit for setting in host.settings if isinstance(setting.target, UnitState)}
            return "units", {"names": sorted(units)}
        case "state":
            return "guest_state", {"guest": piece.guest}
        case "threads":
            return "threads", {"guest": piece.guest}
        case "memory":
            return "numa_maps", {"guest": piece.guest}
        case "intruders":
            return "intruders", {"cpus": sorted(vcpu_cpus(host)), "guests": [guest.name for guest in host.guests]}


def planned_files(host: HostPlan) -> tuple[str, ...]:
    """Paths of every file that the plan sets or by which a boot argument shows its effect."""
    paths = []
    for setting in host.settings:
        if isinstance(setting.target, FileValue):
            paths.append(setting.target.path)
        elif isinstance(setting.target, BootArgument) and setting.target.effective is not None:
            paths.append(setting.target.effective.path)
    return tuple(dict.fromkeys(paths))


def partitions(host: HostPlan, seen: Observation) -> list[str]:
    """Folders of the cgroups whose partitions the plan wants, as far as their guests run."""
    found = []
    for setting in host.settings:
        if isinstance(setting.target, GuestPartition):
            guest = seen.guests.get(setting.target.guest)
            thread = guest.vcpu(setting.target.vcpu) if guest else None
            if thread and thread["cgroup"]:
                found.append(f"/sys/fs/cgroup{thread['cgroup']}")
    return found


def takes_time_away(host: HostPlan) -> bool:
    """Whether the plan leaves the host's own threads no time beside a real-time thread that spins."""
    return any(
        setting.phase is Phase.THROTTLE and setting.status != "absent" and canary.takes_away(setting.new, "1")
        for setting in host.settings
    )


def links(facts: Facts) -> list[str]:
    """Network interfaces that are devices; bridges and taps come and go with guests."""
    return [nic.name for nic in facts.nics if nic.pci is not None]


# -- what a look, or an event by itself, changes ----------------------------------------------------------------------


def took(seen: Observation, piece: Piece, answer: Any) -> Observation:
    """The observation with the answer of the probe to :func:`request`."""
    seen = _without_trouble(seen, piece)
    facts = seen.facts
    match piece.what:
        case "facts":
            return replace(seen, facts=Facts.model_validate(answer))
        case "files":
            return replace(seen, facts=_with_files(facts, answer["values"], answer["errors"]))
        case "interrupts":
            interrupts = tuple(Interrupt.model_validate(row) for row in answer)
            return replace(seen, facts=facts.model_copy(update={"interrupts": interrupts}))
        case "kernel threads":
            threads = tuple(KernelThread.model_validate(row) for row in answer)
            return replace(seen, facts=facts.model_copy(update={"kernel_threads": threads}))
        case "units":
            return replace(seen, units=answer)
        case "intruders":
            return replace(seen, intruders=answer)
        case _:
            return _with_guest(seen, piece, answer)


def refused(seen: Observation, piece: Piece, message: str) -> Observation:
    """The observation when the machine could not answer: what depends on it is not checked, and says why.

    A guest that does not run has no threads and no memory; that is no trouble.
    """
    seen = replace(seen, trouble={**seen.trouble, _key(piece): message})
    match piece.what:
        case "threads" | "memory":
            guest = seen.guests.get(piece.guest, GuestSeen("unknown"))
            return replace(seen, guests={**seen.guests, piece.guest: replace(guest, threads=None, memory=None)})
        case "state":
            guest = GuestSeen("unknown", trouble=message)
            return replace(seen, guests={**seen.guests, piece.guest: guest})
        case "intruders":
            return replace(seen, intruders=None)
    return seen


def _key(piece: Piece) -> str:
    return f"{piece.guest} {piece.what}" if piece.guest else piece.what


def _without_trouble(seen: Observation, piece: Piece) -> Observation:
    if _key(piece) not in seen.trouble:
        return seen
    return replace(seen, trouble={key: text for key, text in seen.trouble.items() if key != _key(piece)})


def _with_files(facts: Facts, values: dict[str, str], errors: dict[str, str]) -> Facts:
    settings = {path: text for path, text in facts.settings.items() if path not in errors} | values
    unreadable = {path: name for path, name in facts.unreadable.items() if path not in values}
    unreadable |= {path: name for path, name in errors.items() if name != "ENOENT"}
    return facts.model_copy(update={"settings": settings, "unreadable": unreadable})


def _with_guest(seen: Observation, piece: Piece, answer: Any) -> Observation:
    guest = seen.guests.get(piece.guest, GuestSeen("unknown"))
    if piece.what == "state":
        guest = replace(guest, state=answer["state"], live=answer["live"], defined=answer["defined"], trouble="")
        if answer["live"] is None:
            guest = replace(guest, threads=None, memory=None)
    elif piece.what == "threads":
        guest = replace(guest, threads=answer["threads"])
    else:
        guest = replace(guest, memory=answer)
    return replace(seen, guests={**seen.guests, piece.guest: guest})


def happened(picture: Picture, event: Event) -> Picture:
    """What an event says by itself, before anybody looks."""
    around, seen = picture.around, picture.seen
    match event["kind"]:
        case "start":
            profile = event["profile"]
            around = replace(
                around,
                owners=frozenset(event["owners"]),
                profile=profile,
                profile_before=around.profile_before if around.started else profile,
                started=True,
            )
        case "link":
            now = not event["gone"] and event["up"]
            links, before = {**around.links, event["name"]: now}, dict(around.links_before)
            before[event["name"]] = before.get(event["name"], False) or now
            around = replace(around, links=links, links_before=before)
        case "owner":
            owners = around.owners | {event["name"]} if event["running"] else around.owners - {event["name"]}
            around = replace(around, owners=owners)
        case "profile":
            around = replace(around, profile=event["profile"])
        case "canary":
            around = replace(around, canary=event["message"] or "")
        case "interrupts":
            seen = replace(seen, interrupts={"rows": event["rows"], "seconds": event["seconds"]})
        case "cpu" if not event["online"]:
            cpus = tuple(
                cpu.model_copy(update={"online": False}) if cpu.id == event["cpu"] else cpu for cpu in seen.facts.cpus
            )
            seen = replace(seen, facts=seen.facts.model_copy(update={"cpus": cpus}))
    return Picture(seen, around)


def quiet(picture: Picture, seconds: float) -> Picture:
    """No device has fired on an isolated CPU for so long."""
    return replace(picture, seen=replace(picture.seen, interrupts={"rows": [], "seconds": seconds}))


# -- judging ----------------------------------------------------------------------------------------------------------


def judge(host: HostPlan, picture: Picture, plan_sha256: str) -> Findings:
    """As a quick verification would, and what only a watcher knows."""
    made = findings(host, picture.seen, plan_sha256=plan_sha256, options=OPTIONS)
    checks = [check for check in made.checks if check.subject != "spinner"]
    return made.model_copy(update={"checks": (*checks, *_around(host, picture.around))})


def _around(host: HostPlan, around: Surroundings) -> Sequence[Check]:
    checks = []
    if host.ledger.isolated:  # elsewhere irqbalance does its work
        for name in RIVALS:
            runs = name in around.owners
            checks.append(
                OWNER.judge(
                    not runs,
                    expected="does not run",
                    observed="runs" if runs else "does not run",
                    evidence=(item("/proc/*/comm", name if runs else f"no {name}"),),
                    part=name,
                )
            )
        if around.profile_before is not None or around.profile is not None:
            checks.append(
                PROFILE.judge(
                    around.profile == around.profile_before,
                    expected=around.profile_before or "none",
                    observed=around.profile or "none",
                    evidence=(item("/etc/tuned/active_profile", around.profile or "(no such file)"),),
                )
            )
    if around.canary is not None:
        observed = around.canary or "it does"
        evidence = (item(canary.FILE, observed),)
        checks.append(CANARY.judge(not around.canary, expected="it does", observed=observed, evidence=evidence))
    for name, before in sorted(around.links_before.items()):
        if before:
            now = around.links.get(name, False)
            checks.append(
                LINK.judge(
                    now,
                    expected="up",
                    observed="up" if now else "down",
                    evidence=(item(f"/sys/class/net/{name}", "up" if now else "down, or without a carrier"),),
                    part=name,
                )
            )
    return checks
