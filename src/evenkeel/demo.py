"""The demo: the whole river on a virtual host of its own, each step saved as a document, a report at the end.

Calls the same functions as the verbs.  The host is thrown away and made anew, so that it is untuned every time; what
fails or is interrupted leaves no host behind.  Prints nothing: :class:`Stage` is told what goes on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from evenkeel.documents.base import Document
from evenkeel.documents.evidence import Evidence
from evenkeel.documents.facts import Facts
from evenkeel.documents.journal import Journal
from evenkeel.documents.plan import GuestPlan, HostPlan, Plan
from evenkeel.documents.site import Site
from evenkeel.errors import EvenkeelError, Unreachable, WrongInput
from evenkeel.machines.protocol import Machine, OnProgress, Probe
from evenkeel.report import folder as names
from evenkeel.report.verdict import HostRun, Run

#: In the folder of a virtual host that a demo made, and that the next demo may throw away.
MARK = "made-by-demo"
#: Seconds that each run of cyclictest takes: long enough to see that it works; emulated, more would say no more.
MEASURE_S = 5
#: Seconds of each spinner, before and after.
SPIN_S = 4.0
#: How long a guest may take until its agent answers; 10 s on two idle cores.
GUEST_BOOT_S = 180.0
#: What a demo writes into its folder; removed before the first step, so that no old document passes for a new one.
WRITTEN = (
    names.PLAN,
    names.FACTS_BEFORE,
    names.FACTS_AFTER,
    names.EVIDENCE_BEFORE,
    names.EVIDENCE_AFTER,
    names.FINDINGS_BEFORE,
    names.FINDINGS,
    names.JOURNAL,
    names.REPORT,
)


class Stage(Protocol):
    """Where the demo is shown."""

    def step(self, title: str) -> AbstractContextManager[OnProgress]:
        """A step begins; it ends with the context."""

    def plan(self, plan: Plan) -> None:
        """The plan is made: show it, with the reason of every line."""

    def note(self, text: str) -> None:
        """Something that the reader should know."""

    def save(self, file: Path, document: Document) -> None:
        """Write a document.  Raises EvenkeelError."""


@dataclass
class Demo:
    """A demo under way, and what came of it.  ``seconds``: what each step took, in order."""

    site: Site
    folder: Path
    stage: Stage
    fresh: bool = False
    seconds: list[tuple[str, float]] = field(default_factory=list)
    run: Run | None = None
    error: EvenkeelError | None = None

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[OnProgress]:
        started = time.monotonic()
        try:
            with self.stage.step(title) as on_progress:
                yield on_progress
        finally:
            self.seconds.append((title, time.monotonic() - started))

    def keep(self, host: HostPlan, slot: str, file: str, document: Document) -> None:
        """Save a document and take it into the run."""
        assert self.run is not None
        self.stage.save(self.folder / file, document)
        of_host = replace(self.run.of(host), **{slot: document})  # type: ignore[arg-type]  # callers name the slot
        self.run = replace(self.run, hosts={**self.run.hosts, host.name: of_host})


def play(demo: Demo, *, keep_host: bool = False) -> None:
    """Run the demo.  What stops it half-way is in ``demo.error``, and in the report if there was a plan by then.

    Raises WrongInput when it cannot begin; KeyboardInterrupt passes through once the host is gone.
    """
    name = virtual_name(demo.site)
    for file in WRITTEN:
        (demo.folder / file).unlink(missing_ok=True)
    with _alone(), _host(demo, name, keep_host):
        try:
            _river(demo)
        except EvenkeelError as error:
            demo.error = _explained(error, name)
    if demo.run is not None:
        if demo.error is not None:
            demo.run = replace(demo.run, stopped=f"The run stopped early: {demo.error.message}")
        _report(demo)


def _explained(error: EvenkeelError, name: str) -> EvenkeelError:
    """A lost connection is only half of the story when the whole host is gone, or stands still."""
    from evenkeel.machines.virtual import lifecycle

    if not isinstance(error, Unreachable):
        return error
    if lifecycle.read_run(name) is not None:
        if (why := lifecycle.why_paused(name)) is None or why in error.message:
            return error
        told = f"virtual host {name} stands still: {why} ({error.message})"
        return Unreachable(told, where=error.where, hint="make room, or point XDG_STATE_HOME to a larger disk")
    told = error.message if "QEMU" in error.message else f"QEMU of virtual host {name} ended: {error.message}"
    return Unreachable(told, where=error.where, hint="was it killed, or is this machine short of memory? see dmesg")


def virtual_name(site: Site) -> str:
    """Name of the one virtual host of a site.  Raises WrongInput for any other site: a demo throws its host away."""
    addresses = [host.address for host in site.hosts.values()]
    if len(addresses) != 1 or not addresses[0].startswith("virtual:"):
        raise WrongInput(
            f"a demo needs a site with one host, a virtual one; this one has {', '.join(addresses)}",
            hint="for your own hosts: evenkeel plan, apply, verify, measure, report",
        )
    return addresses[0].removeprefix("virtual:")


# -- the host ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One demo at a time: the next one would throw away the host of this one."""
    from evenkeel.machines.virtual.places import hosts_dir

    # A name in the kernel, not a file: it is gone with the process, however that ends.
    place = hashlib.sha256(os.fsencode(hosts_dir())).hexdigest()[:16]
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0evenkeel-demo-{place}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise WrongInput("another demo is running", hint="wait for its end, or stop it with Ctrl-C") from None
        yield


@contextlib.contextmanager
def _host(demo: Demo, name: str, keep: bool) -> Iterator[None]:
    """A new, untuned virtual host that runs.  Afterwards it is gone, unless the demo succeeded and it shall be kept."""
    from evenkeel.machines.virtual import image, lifecycle, qemu, spec
    from evenkeel.machines.virtual.interrupt import undisturbed

    if lifecycle.exists(name) and not (lifecycle.folder_of(name) / MARK).exists():
        raise WrongInput(
            f"there is a virtual host {name} that no demo made",
            hint=f"the demo needs the name: evenkeel virtual rm {name}",
        )
    try:
        with demo.step("Virtual host: QEMU and a Debian image with a real-time kernel") as on_progress:
            if lifecycle.folder_of(name).exists():
                lifecycle.remove(name)
            if demo.fresh:
                _forget_image()
            qemu.find(on_progress)
            image.ensure(on_progress)
        with demo.step(f"Virtual host: boot {name}") as on_progress:
            lifecycle.create(name, spec.BUILT_IN["default"], on_progress=on_progress)
            (lifecycle.folder_of(name) / MARK).touch()
            lifecycle.start(name, reuse_boot=True, on_progress=on_progress)
        yield
        keep = keep and demo.error is None
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            with undisturbed(), contextlib.suppress(EvenkeelError):
                lifecycle.remove(name)


def _forget_image() -> None:
    """Remove the cached image of today's recipe.  Raises WrongInput when another virtual host stands on it."""
    import shutil

    from evenkeel.machines.virtual import image, lifecycle

    found = image.find()
    if found is None:
        return
    users = [host.name for host in lifecycle.listing() if lifecycle.read_host(host.name).image == found.key]
    if users:
        raise WrongInput(
            f"the cached image cannot be made anew: {', '.join(users)} still need it",
            hint=f"evenkeel virtual rm {users[0]}, or leave out --fresh",
        )
    shutil.rmtree(found.folder)


# -- the river --------------------------------------------------------------------------------------------------------


def _river(demo: Demo) -> None:
    from evenkeel.apply import hosts
    from evenkeel.machines.address import resolve
    from evenkeel.plan import make_plan
    from evenkeel.verify.host import findings
    from evenkeel.verify.observe import Options, observe

    (name, wish), *_ = demo.site.hosts.items()
    with contextlib.closing(resolve(wish.address)) as machine:
        with demo.step("Facts: what this machine is, and how it is set") as on_progress, machine.probe() as probe:
            facts = hosts.read_facts(probe, on_progress)
        with demo.step("Plan: work out every setting"):
            plan = make_plan(demo.site, {name: facts})
        (host,) = plan.hosts
        demo.run = Run(plan=plan, hosts={name: HostRun(facts_before=facts)})
        demo.stage.save(demo.folder / names.PLAN, plan)
        demo.stage.save(demo.folder / names.FACTS_BEFORE, facts)
        demo.stage.plan(plan)
        with contextlib.ExitStack() as guests:
            with demo.step("Measure before: start the guest, untuned") as on_progress:
                started = _start_ordinary(guests, demo, host, machine, facts, on_progress)
            with demo.step("Look before: the same checks, untuned") as on_progress, machine.probe() as probe:
                # While the guest boots: what is looked at is where its threads and pages are.  Its spinners come next.
                options = Options(spinners=False)
                seen = observe(host, probe, facts, options, on_progress)
                untuned = findings(host, seen, plan_sha256=plan.sha256(), options=options)
                demo.keep(host, "findings_before", names.FINDINGS_BEFORE, untuned)
            with demo.step("Measure before: spinners and cyclictest, untuned host and guest") as on_progress:
                _wait_for_agents(machine, started, on_progress)
                before = _measured(demo, host, machine, facts, "before", on_progress)
                demo.keep(host, "evidence_before", names.EVIDENCE_BEFORE, before)
        _apply(demo, host, machine)
        with demo.step("Verify: every setting, thread, page and interrupt") as on_progress, machine.probe() as probe:
            facts = hosts.read_facts(probe, on_progress)
            demo.keep(host, "facts_after", names.FACTS_AFTER, facts)
            seen = observe(host, probe, facts, Options(seconds=SPIN_S), on_progress)
            demo.keep(host, "findings", names.FINDINGS, findings(host, seen, plan_sha256=plan.sha256()))
        with demo.step("Measure after: cyclictest, host and guest") as on_progress:
            # The spinners of the verification are the same, and a moment old.
            after = _measured(demo, host, machine, facts, "after", on_progress, spun=seen.spun())
            demo.keep(host, "evidence_after", names.EVIDENCE_AFTER, after)


def _measured(
    demo: Demo,
    host: HostPlan,
    machine: Machine,
    facts: Facts,
    moment: Literal["before", "after"],
    inner: OnProgress,
    spun: Sequence[dict[str, Any]] = (),
) -> Evidence:
    from evenkeel.measure import measure_host
    from evenkeel.measure.host import Wish

    assert demo.run is not None
    with machine.probe() as probe:
        return measure_host(
            host,
            probe,
            facts,
            moment=moment,
            wish=Wish(seconds=MEASURE_S, load=("hackbench",), spin_seconds=SPIN_S),
            plan_sha256=demo.run.plan.sha256(),
            spun=spun,
            on_progress=inner,
            on_note=demo.stage.note,
        )


def _start_ordinary(
    running: contextlib.ExitStack, demo: Demo, host: HostPlan, machine: Machine, facts: Facts, on_progress: OnProgress
) -> list[str]:
    """Start each real-time guest as an ordinary one on the untuned host; they are gone again with ``running``.

    The spinners have them beside them before as after, which is what both are compared by.  Their names; they still
    boot.
    """
    from evenkeel.plan import make_plan

    wanted = [guest.name for guest in host.guests if guest.goal == "realtime"]
    ordinary = {"goal": "flexible", "latency": None, "realtime_vcpus": None, "page_size": None}
    site = demo.site.model_copy(
        update={"guests": {name: wish.model_copy(update=ordinary) for name, wish in demo.site.guests.items()}}
    )
    (plain,) = make_plan(site, {host.name: facts}).hosts
    started = [guest for guest in plain.guests if guest.name in wanted]
    for guest in started:
        on_progress(0, 0, f"starting {guest.name}")
        running.enter_context(_transient_guest(machine, guest))
    return [guest.name for guest in started]


@contextlib.contextmanager
def _transient_guest(machine: Machine, guest: GuestPlan) -> Iterator[None]:
    """A guest that libvirt forgets when it stops."""
    with machine.probe() as probe:
        _virsh(probe, "create", "/dev/stdin", stdin=guest.xml)
    yield
    # Not in a `finally`: what raises here ends the demo, and with it the whole host.
    with machine.probe() as probe:
        _virsh(probe, "destroy", guest.name)


def _wait_for_agents(machine: Machine, guests: Sequence[str], on_progress: OnProgress) -> None:
    """Until the agent of each guest runs a program.  Raises EvenkeelError when one does not."""
    from evenkeel.measure.guest import guest_exec

    deadline = time.monotonic() + GUEST_BOOT_S
    with machine.probe() as probe:
        for guest in guests:
            while True:
                try:
                    guest_exec(probe, guest, ["true"])
                    break
                except EvenkeelError as error:
                    if type(error) is not EvenkeelError or time.monotonic() > deadline:
                        raise
                on_progress(0, 0, f"{guest} is booting")
                time.sleep(1.0)


def _virsh(probe: Probe, *words: str, stdin: str | None = None) -> None:
    """Raises EvenkeelError with what virsh said."""
    done = probe.call("run", argv=["virsh", *words], stdin=stdin, within_s=120.0, timeout_s=150.0)
    if done["rc"] != 0:
        raise EvenkeelError(f"virsh {words[0]} failed: {done['stderr'].strip()[-300:]}")


def _apply(demo: Demo, host: HostPlan, machine: Machine) -> None:
    """Write the plan, reboot, start the guests.  The journal is saved whether it works or not."""
    from evenkeel.apply import engine, hosts

    def leave_at_once() -> None:
        # The engine would roll back first; this host is thrown away anyway.
        raise KeyboardInterrupt

    assert demo.run is not None
    try:
        with demo.step("Apply: boot layer, reboot, boot gate, settings, guests") as on_progress:
            engine.apply_plan(host, demo.run.plan, machine, reboot=True, on_progress=on_progress, on_stop=leave_at_once)
    finally:
        with contextlib.suppress(EvenkeelError), machine.probe() as probe:
            entries = hosts.read_journal(probe).entries
            demo.keep(host, "journal", names.JOURNAL, Journal(host=host.name, entries=entries))


def _report(demo: Demo) -> None:
    from evenkeel.cli.files import save_text
    from evenkeel.report.html import render_report

    assert demo.run is not None
    with demo.step("Report"):
        save_text(demo.folder / names.REPORT, render_report(demo.run))
