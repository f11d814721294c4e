"""`evenkeel plan SITE`: read facts, work out every setting, print old -> new with the reason.  Writes no host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.documents.facts import Facts
    from evenkeel.documents.plan import GuestPlan, HostPlan, Ledger, Plan, Setting
    from evenkeel.documents.site import Site
    from evenkeel.errors import Unreachable
    from evenkeel.plan.diff import Difference

FACTS_SUFFIX = ".facts.json"  # behind the name of a host, in a folder of saved facts
_ROLES = {
    "housekeeping": "the host itself, emulator and I/O threads, interrupts",
    "data_plane": "packet processing that polls",
    "realtime": "vCPUs of performance and realtime guests",
    "idle": "siblings kept empty beside them",
    "shared": "vCPUs of flexible and balanced guests",
}
_PHASES = {
    "boot": "kernel command line, at the reboot",
    "memory": "memory",
    "interrupts": "interrupts",
    "workqueues": "workqueues",
    "kernel": "kernel: timers, statistics, watchdogs",
    "threads": "kernel threads",
    "guest": "guests",
    "throttle": "real-time throttling, last of all",
}


def register(app: typer.Typer) -> None:
    @app.command()
    def plan(
        site: Annotated[
            str, typer.Argument(metavar="SITE", help="Site file, or a folder of them.", show_default=False)
        ],
        output: Annotated[
            str | None,
            typer.Option("--output", "-o", metavar="FILE", help="Write the plan document here (- is stdout)."),
        ] = None,
        facts: Annotated[
            list[str] | None,
            typer.Option(
                "--facts",
                metavar="HOST=FILE",
                help="Use saved facts of a host instead of asking it. FILE alone will do for a site of one host; a "
                "folder has HOST.facts.json for as many as it knows.",
            ),
        ] = None,
        against: Annotated[
            str | None, typer.Option("--against", metavar="PLAN", help="Show what differs from an older plan instead.")
        ] = None,
        keep: Annotated[
            str | None,
            typer.Option(
                "--keep",
                metavar="PLAN",
                help="Leave guests where this older plan has them. Those that a host has defined stay anyway.",
            ),
        ] = None,
        show_all: Annotated[bool, typer.Option("--all", help="List settings that are already so, too.")] = False,
        give_up: Annotated[
            bool, typer.Option("--what-you-give-up", help="Show what the plan costs instead, guest by guest.")
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the plan document (or the cost) on stdout.")
        ] = False,
    ) -> None:
        """Work out every setting of a site, with its reason. Changes nothing.

        evenkeel plan examples/plc/site.yaml -o plan.json

        evenkeel plan site.yaml --facts cell=cell.facts.json

        evenkeel plan site.yaml --keep plan.json -o plan.json

        evenkeel plan site.yaml --what-you-give-up
        """
        from evenkeel.cli import files
        from evenkeel.cli import output as console
        from evenkeel.documents.plan import Plan
        from evenkeel.plan.diff import diff_plans

        taken = console.takes_stdout({"-o": output}, json=as_json)
        wanted = files.load_site(site)
        older = files.load_document(Plan, against) if against else None
        kept = files.load_document(Plan, keep) if keep else None
        known = gather_facts(wanted, facts or ())
        with files.placed_in(site):
            made = plan_hosts(wanted, known, kept)
        if output:
            files.save_document(output, made)
        if taken:
            return
        if give_up:
            from evenkeel.cli.plan_cost import print_cost
            from evenkeel.plan.cost import cost_of

            cost = cost_of(made, known)
            if as_json:
                console.emit_json(cost)
            else:
                print_cost(cost)
        elif as_json:
            console.emit_json(made)
        else:
            if older is not None:
                _print_differences(diff_plans(older, made))
            else:
                print_plan(made, show_all=show_all)
            if output:
                console.note(f"wrote {output}; next: evenkeel apply {output}")


def plan_of(source: str) -> Plan:
    """The plan that was named, or the one that the site and the facts of its hosts make now."""
    from evenkeel.cli.files import load_plan_or_site, placed_in
    from evenkeel.documents.plan import Plan

    found = load_plan_or_site(source)
    if isinstance(found, Plan):
        return found
    facts = gather_facts(found, ())
    with placed_in(source):
        return plan_hosts(found, facts, None)


def plan_of_answering(source: str) -> tuple[Plan, dict[str, tuple[str, Unreachable]]]:
    """The plan that was named; of a site, the plan of the hosts that answer, and why the others do not.

    For verbs that look at hosts: one that is away must not hide the rest.  Host -> (address, why).
    """
    from evenkeel.apply.hosts import ask_facts
    from evenkeel.cli import output
    from evenkeel.cli.files import load_plan_or_site, placed_in
    from evenkeel.documents.plan import Plan
    from evenkeel.errors import Unreachable

    site = load_plan_or_site(source)
    if isinstance(site, Plan):
        return site, {}
    facts: dict[str, Facts] = {}
    away: dict[str, tuple[str, Unreachable]] = {}
    for name, wish in sorted(site.hosts.items()):
        try:
            with output.progress(f"reading facts of {name}") as on_progress:
                facts[name] = ask_facts(wish.address, on_progress)
        except Unreachable as error:
            away[name] = (wish.address, error)
    if not facts:
        return Plan(site_sha256=site.sha256(), hosts=()), away
    only = next(iter(site.hosts)) if len(site.hosts) == 1 else None
    # A guest whose host was chosen is where it is defined; where that is not known, it may be on a host that is silent.
    defined = {one.guest: host for host, known in sorted(facts.items()) for one in known.definitions}
    where = {name: guest.host or only or defined.get(name) for name, guest in site.guests.items()}
    here = {
        "hosts": {name: wish for name, wish in site.hosts.items() if name in facts},
        "guests": {
            name: guest.model_copy(update={"host": where[name]})
            for name, guest in site.guests.items()
            if where[name] in facts
        },
    }
    with placed_in(source):
        return plan_hosts(site.model_copy(update=here), facts, None), away


def plan_hosts(site: Site, facts: dict[str, Facts], keep: Plan | None) -> Plan:
    """The plan of a site; guests that name no host get one first, where there are several.  Raises WrongInput."""
    from evenkeel.cli.place import settle_hosts
    from evenkeel.plan import make_plan

    placed, seats = settle_hosts(site, facts, keep)
    made = make_plan(placed, facts, keep, seats)
    return made if seats is None else made.model_copy(update={"site_sha256": site.sha256()})


def gather_facts(site: Site, saved: Iterable[str]) -> dict[str, Facts]:
    """Facts of every host: the saved ones (``HOST=FILE``), the others asked now.

    Raises WrongInput for a file that is none, Unreachable for a host that does not answer.
    """
    from evenkeel.apply.hosts import ask_facts
    from evenkeel.cli import files, output
    from evenkeel.documents.facts import Facts

    found = {host: files.load_document(Facts, file) for host, file in _saved(site, saved).items()}
    missing = [host for host in sorted(site.hosts) if host not in found]
    for host in missing:
        with output.progress(f"reading facts of {host} ({site.hosts[host].address})") as on_progress:
            found[host] = ask_facts(site.hosts[host].address, on_progress)
    return found


def _saved(site: Site, saved: Iterable[str]) -> dict[str, str]:
    """Host -> file, of HOST=FILE, of FILE for a site of one host, or of folders with HOST.facts.json."""
    from pathlib import Path

    from evenkeel.errors import WrongInput
    from evenkeel.machines.paths import kind_of
    from evenkeel.plan.problems import did_you_mean

    found: dict[str, str] = {}
    of_folders: dict[str, str] = {}
    for text in saved:
        host, equals, file = text.partition("=")
        if not equals and kind_of(text) == "folder":
            there = {one: Path(text, f"{one}{FACTS_SUFFIX}") for one in site.hosts}
            files = {one: str(path) for one, path in there.items() if kind_of(path) == "file"}
            if not files:
                raise WrongInput(
                    f"--facts {text}: the folder has facts of none of {', '.join(sorted(site.hosts)[:5])}",
                    hint=f"evenkeel facts ADDRESS --json > {Path(text, min(site.hosts))}{FACTS_SUFFIX}",
                )
            of_folders.update(files)
            continue
        if not equals:
            if len(site.hosts) != 1:
                raise WrongInput(
                    f"--facts {text}: of which host? the site has {len(site.hosts)}",
                    hint=f"write --facts {min(site.hosts)}={text}, or name a folder that has HOST{FACTS_SUFFIX}",
                )
            host, file = next(iter(site.hosts)), text
        if host not in site.hosts:
            raise WrongInput(f"--facts {text}: the site has no host {host}", hint=did_you_mean(host, site.hosts))
        if host in found:
            raise WrongInput(f"--facts names host {host} twice")
        found[host] = file
    return {**of_folders, **found}


# -- printing ---------------------------------------------------------------------------------------------------------


def print_plan(plan: Plan, *, show_all: bool = False) -> None:
    """The whole plan for a person: per host the CPUs, the settings by phase, the guests, what cannot be set, a sum."""
    from evenkeel.cli.output import out

    console = out()
    for index, host in enumerate(plan.hosts):
        if index:
            console.print()
        kind = "PREEMPT_RT" if host.preempt_rt else "not PREEMPT_RT"
        console.print(f"Host {host.name} ({host.address}), Linux {host.kernel_release}, {kind}", style="bold")
        _print_ledger(host.ledger)
        _print_guests(host.guests)
        _print_settings(host, show_all)
        for note in host.notes:
            console.print(f"\nnote {note.rule}: {note.text}")
        console.print()
        console.print(summary(host), style="bold")
    if plan.hosts and any(host.settings for host in plan.hosts):
        first = next(setting.id for host in plan.hosts for setting in host.settings)
        console.print(f"why, in full: evenkeel explain PLAN {first}")


def summary(host: HostPlan) -> str:
    """``"cell: 28 changes (9 at a reboot), 8 already so, 2 that this kernel lacks on purpose; 2 guests"``."""
    own = [setting for setting in host.settings if setting.phase != "guest"]
    changes = [setting for setting in own if setting.status == "change"]
    boot = sum(setting.disturbance == "reboot" for setting in changes)
    drain = sum(setting.disturbance == "drain" for setting in changes)
    how = ", ".join(
        part
        for part in (
            f"{boot} need a reboot" if boot else "",
            f"{drain} should come before guests start" if drain else "",
        )
        if part
    )
    satisfied = sum(setting.status == "satisfied" for setting in own)
    absent = sum(setting.status == "absent" for setting in own)
    text = f"{host.name}: {len(changes)} change{'s' * (len(changes) != 1)}{f' ({how})' if how else ''}"
    text += f", {satisfied} already so"
    if absent:
        text += f", {absent} that this kernel does not have"
    if host.guests:
        text += f"; {len(host.guests)} guest{'s' * (len(host.guests) != 1)} to define and place"
    return text


def _print_ledger(ledger: Ledger) -> None:
    from evenkeel.cli.output import out, table
    from evenkeel.documents.cpuset import format_cpus

    rows = [
        (role.replace("_", " "), format_cpus(cpus), about)
        for role, about in _ROLES.items()
        if (cpus := getattr(ledger, role))
    ]
    console = out()
    console.print()
    console.print(table(["role", "CPUs", "what runs there"], rows))
    for sentence in ledger.why:
        console.print(f"  {sentence}")


def _print_guests(guests: tuple[GuestPlan, ...]) -> None:
    from evenkeel.cli.output import out, table
    from evenkeel.documents.cpuset import format_cpus
    from evenkeel.documents.quantity import format_size

    if not guests:
        return
    rows = []
    passed = any(guest.functions for guest in guests)
    for guest in guests:
        pages = f" in {guest.pages} pages of {format_size(guest.page_bytes)}" if guest.page_bytes else ""
        rows.append(
            (
                guest.name,
                guest.goal,
                _vcpus(guest),
                format_cpus(guest.nodes) or "any",
                format_size(guest.memory_bytes) + pages,
                format_cpus(guest.emulator_cpus),
                *([" ".join(guest.functions)] if passed else []),
            )
        )
    console = out()
    console.print()
    columns = ["guest", "goal", "vCPU: CPU", "node", "memory", "emulator", *(["functions"] if passed else [])]
    console.print(table(columns, rows))


def _vcpus(guest: GuestPlan) -> str:
    """``"0: 8, 1: 10 fifo 2"``; one entry for all where they float over the same CPUs."""
    from evenkeel.documents.cpuset import format_cpus

    if len(guest.vcpus) > 1 and len({(vcpu.cpus, vcpu.policy) for vcpu in guest.vcpus}) == 1:
        return f"{format_cpus(vcpu.index for vcpu in guest.vcpus)}: any of {format_cpus(guest.vcpus[0].cpus)}"
    return ", ".join(
        f"{vcpu.index}: {'any of ' if len(vcpu.cpus) > 1 else ''}{format_cpus(vcpu.cpus)}"
        + (f" {vcpu.policy} {vcpu.priority}" if vcpu.policy != "other" else "")
        for vcpu in guest.vcpus
    )


def _print_settings(host: HostPlan, show_all: bool) -> None:
    from evenkeel.cli.output import out, table

    by_phase: dict[str, list[Setting]] = {}
    for setting in host.settings:
        if show_all or setting.status == "change":
            by_phase.setdefault(setting.phase.value, []).append(setting)
    console = out()
    for phase, settings in by_phase.items():
        rows = [_row(list(alike)) for _, alike in groupby(settings, key=_likeness)]
        console.print()
        console.print(table(["rule", "what", "old", "new", "how", "why"], rows, title=_PHASES[phase]))


def _likeness(setting: Setting) -> tuple[object, ...]:
    """Settings that differ only in what they are about share a line: a server has dozens of interrupts."""
    return setting.rule, setting.old, setting.new, setting.status, setting.reason


def _row(alike: list[Setting]) -> tuple[str, ...]:
    one = alike[0]
    kind, _, _ = _what(one).rpartition(" ")
    what = ", ".join([_what(one), *(_what(other).removeprefix(f"{kind} ") for other in alike[1:])])
    identifier = one.id if len(alike) == 1 else f"{one.rule} ({len(alike)})"
    return identifier, what, _old(one), _new(one), one.disturbance, one.reason


def _what(setting: Setting) -> str:
    from evenkeel.plan.rules import describe_target

    text = describe_target(setting.target)
    for prefix in (
        "/proc/sys/",
        "/sys/devices/system/",
        "/sys/devices/virtual/",
        "/sys/kernel/",
        "/sys/module/",
        "boot argument ",
    ):
        text = text.removeprefix(prefix)
    return text


def _old(setting: Setting) -> str:
    if setting.target.type == "guest":
        return ""
    return "-" if setting.old in (None, "") else str(setting.old)


def _new(setting: Setting) -> str:
    if setting.target.type == "guest":
        return "defined"
    if setting.status == "absent":
        return "nothing to set"
    if setting.new is None:
        return "removed"
    return (setting.new or "set") + (" (already so)" if setting.status == "satisfied" else "")


def _print_differences(found: Sequence[Difference]) -> None:
    from evenkeel.cli.output import out, table

    if not found:
        out().print("the two plans ask for the same")
        return
    rows = [(one.host, one.kind, one.what, one.before or "-", one.after or "-") for one in found]
    out().print(table(["host", "", "what", "before", "after"], rows))
