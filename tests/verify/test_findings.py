"""Judging: a recorded healthy host gives no finding; the same with one thing changed gives that one, by its id."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Interrupt
from evenkeel.documents.findings import Check, Findings
from evenkeel.documents.plan import BootArgument, FileValue, HostPlan
from evenkeel.verify.catalogue import CATALOGUE, shorten
from evenkeel.verify.host import findings
from evenkeel.verify.observe import GuestSeen, Observation, Options, spin_places
from tests.verify import test_cells, test_io_threads, test_passthrough
from tests.verify.record import load

PLAN, SEEN = load()
HOST = PLAN.hosts[0]
CPU = 5  # of the real-time vCPU, as recorded
Change = Callable[[Observation], Observation]


def judge(seen: Observation, host: HostPlan = HOST, options: Options | None = None) -> Findings:
    return findings(host, seen, options=options)


def failed(found: Findings) -> set[str]:
    return {check.id for check in found.failed}


def open_checks(found: Findings) -> dict[str, str]:
    return {check.id: check.reason for check in found.checks if check.status == "not_checked"}


def one(found: Findings, identifier: str) -> Check:
    return next(check for check in found.checks if check.id == identifier)


# -- changes ------------------------------------------------------------------------------------------------------


def facts(**update: Any) -> Change:
    return lambda seen: replace(seen, facts=seen.facts.model_copy(update=update))


def setting(path: str, value: str | None) -> Change:
    def change(seen: Observation) -> Observation:
        values = {key: text for key, text in seen.facts.settings.items() if key != path}
        if value is not None:
            values[path] = value
        return replace(seen, facts=seen.facts.model_copy(update={"settings": values}))

    return change


def thread(which: Callable[[dict[str, Any]], bool], **update: Any) -> Change:
    def change(seen: Observation) -> Observation:
        guest = copy.deepcopy(seen.guests["plc"])
        touched = [one for one in guest.threads or () if which(one)]
        assert touched
        for one in touched:
            one.update(update)
        return replace(seen, guests={**seen.guests, "plc": guest})

    return change


def guest(**update: Any) -> Change:
    return lambda seen: replace(seen, guests={**seen.guests, "plc": replace(seen.guests["plc"], **update)})


def memory(change_it: Callable[[dict[str, Any]], None]) -> Change:
    def change(seen: Observation) -> Observation:
        found = copy.deepcopy(seen.guests["plc"].memory)
        assert found is not None
        change_it(found)
        return replace(seen, guests={**seen.guests, "plc": replace(seen.guests["plc"], memory=found)})

    return change


def spins(which: str, cpu: int = CPU, **update: Any) -> Change:
    def change(seen: Observation) -> Observation:
        answer = copy.deepcopy(getattr(seen, which))
        touched = [spin for spin in answer["spins"] if spin["cpu"] == cpu]
        assert touched
        for spin in touched:
            spin.update(update)
        return replace(seen, **{which: answer})

    return change


def tenants(share: float, woke: int = 0) -> list[dict[str, Any]]:
    return [{"voluntary_switches": woke, "involuntary_switches": 0, "cpu_seconds": share * 4.0}]


IDLE = tenants(0.0)


def row(action: str, cpu: int, count: int) -> Change:
    def change(seen: Observation) -> Observation:
        answer = copy.deepcopy(seen.quiet)
        assert answer is not None
        answer["rows"].append({"label": "99", "action": action, "kind": "device", "counts": {str(cpu): count}})
        return replace(seen, quiet=answer)

    return change


def interrupt(effective: str, managed: bool) -> Change:
    cpus = parse_cpus(effective)
    extra = Interrupt(number=99, action="new", affinity=cpus, effective=cpus, managed=managed)
    return lambda seen: replace(
        seen, facts=seen.facts.model_copy(update={"interrupts": (*seen.facts.interrupts, extra)})
    )


def kernel(**update: Any) -> Change:
    return lambda seen: replace(
        seen, facts=seen.facts.model_copy(update={"kernel": seen.facts.kernel.model_copy(update=update)})
    )


def is_vcpu(index: int) -> Callable[[dict[str, Any]], bool]:
    return lambda thread: bool(thread["vcpu"] == index)


def is_main(thread: dict[str, Any]) -> bool:
    return bool(thread["kind"] == "emulator")


def is_helper(thread: dict[str, Any]) -> bool:
    return bool(thread["kind"] == "kernel")


def to_node_0(found: dict[str, Any]) -> None:
    for mapping in found["huge"]:
        mapping["nodes"] = {"0": mapping["nodes"]["1"]}


def one_page_elsewhere(found: dict[str, Any]) -> None:
    found["huge"][0]["nodes"]["0"] = 1


def ordinary(found: dict[str, Any]) -> None:
    found["huge"] = []


def unlocked(found: dict[str, Any]) -> None:
    found["locked_bytes"] = 64 << 20


CMDLINE = SEEN.facts.kernel.command_line
BREAKS: list[tuple[str, Change]] = [
    ("V-KERNEL", kernel(release="6.1.0-rt")),
    ("V-KERNEL", kernel(preempt_rt=False)),
    ("V-KERNEL-UNKNOWN", kernel(unknown_parameters=("nohz-full=5",))),
    ("V-MACHINE", facts(memory_bytes=1, nodes=SEEN.facts.nodes[:1])),
    ("V-LEDGER", facts(cpus=SEEN.facts.cpus[:-1])),
    ("V-LEDGER-ISOLATED:nohz_full", facts(nohz_full=frozenset({4}))),
    ("H-ISO-2", kernel(command_line=CMDLINE.replace("nohz_full=4-5", ""))),
    ("H-ISO-2", setting("/sys/devices/system/cpu/nohz_full", " (null)")),
    ("H-ISO-4", setting("/proc/irq/default_smp_affinity", "3f")),
    ("R-WQ-2", setting("/sys/devices/virtual/workqueue/writeback/cpumask", "3f")),
    ("R-TIM-2:stat_interval", setting("/proc/sys/vm/stat_interval", "1")),
    ("R-TIM-2:stat_interval", setting("/proc/sys/vm/stat_interval", None)),
    ("R-MM-3:node1-2M", setting("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "127")),
    (
        "R-RT-4:ktimers/5",
        facts(
            kernel_threads=tuple(
                one.model_copy(update={"priority": 1}) if one.name == "ktimers/5" else one
                for one in SEEN.facts.kernel_threads
            )
        ),
    ),
    ("R-RT-4:ktimers/5", facts(kernel_threads=())),
    ("R-IRQ-4", lambda seen: replace(seen, units={"irqbalance.service": {"ActiveState": "active"}})),
    (
        "R-IRQ-4",
        lambda seen: replace(
            seen, units={"irqbalance.service": {"ActiveState": "inactive", "UnitFileState": "enabled"}}
        ),
    ),
    ("V-IRQ-AFFINITY", interrupt("5", managed=False)),
    ("V-IRQ-COUNT", row("nvme0q6", CPU, 1)),
    ("V-GUEST-RUNNING:plc", guest(state="paused")),
    ("V-GUEST-LIVE:plc", guest(live=(SEEN.guests["plc"].live or "").replace("<locked/>", ""))),
    ("G-15:plc", guest(defined=(SEEN.guests["plc"].defined or "").replace("priority='2'", "priority='1'"))),
    ("G-15:plc", guest(defined=None)),
    ("V-THREAD-VCPU:plc:vcpu1", thread(is_vcpu(1), policy="other", priority=0)),
    ("V-THREAD-VCPU:plc:vcpu1", thread(is_vcpu(1), priority=3)),
    ("V-THREAD-VCPU:plc:vcpu1", thread(is_vcpu(1), cpus="4-5")),
    ("V-THREAD-VCPU:plc:vcpu0", thread(is_vcpu(0), policy="fifo", priority=2)),
    ("G-3:plc/vcpu1", thread(is_vcpu(1), policy="rr")),
    ("C-1:plc/vcpu1", thread(is_vcpu(1), partition="member")),
    ("C-1:plc/vcpu1", thread(is_vcpu(1), partition="isolated invalid (Cpu list in cpuset.cpus not exclusive)")),
    ("C-1:plc/vcpu1", thread(is_vcpu(1), exclusive="")),
    ("V-THREAD-EMULATOR:plc", thread(is_main, cpus="3,5")),
    ("V-THREAD-EMULATOR:plc", thread(is_main, seen=[3, 5])),
    ("V-THREAD-HELPER:plc", thread(is_helper, cpus="5")),
    ("V-THREAD-HELPER:plc", thread(is_helper, cpus="0-5")),
    (
        "V-THREAD-INTRUDER",
        lambda seen: replace(seen, intruders=[{"tid": 9, "pid": 9, "name": "sh", "cpus": "0-5", "policy": "other"}]),
    ),
    ("V-PAGE-NODE:plc", memory(to_node_0)),
    ("V-PAGE-NODE:plc", memory(one_page_elsewhere)),
    ("V-PAGE-NODE:plc", memory(ordinary)),
    ("V-PAGE-LOCKED:plc", memory(unlocked)),
    ("V-SPIN-TICK", spins("quiet", timer_interrupts=400, tenants=IDLE)),
    ("V-SPIN-TICK", spins("quiet", timer_interrupts=10, seconds=4.0, tenants=IDLE)),
    ("V-SPIN-LOAD", spins("loaded", involuntary_switches=80, tenants=IDLE)),
    ("V-SPIN-LOAD", spins("loaded", cpu_seconds=1.0, tenants=IDLE)),
    ("V-SPIN-IRQ", spins("quiet", device_interrupts={"eth0": 1})),
    ("V-SPIN-IRQ", spins("loaded", device_interrupts={"eth0": 1})),
]  # fmt: skip


def test_the_recorded_host_is_as_planned() -> None:
    found = judge(SEEN)
    assert [check for check in found.checks if check.status != "passed"] == []
    assert found.verdict == "as planned" and found.emulated is True
    identifiers = [check.id for check in found.checks]
    assert len(identifiers) == len(set(identifiers))
    silent = [c for c in found.checks if not (c.evidence and c.why and c.fix and c.expected and c.observed)]
    assert [check.id for check in silent] == []


@pytest.mark.parametrize(("identifier", "change"), BREAKS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BREAKS)])
def test_one_thing_broken_is_one_finding(identifier: str, change: Change) -> None:
    found = judge(change(SEEN))
    assert identifier in failed(found)
    # What follows from the same fact may fail with it, nothing else does.
    assert failed(found) <= _CONSEQUENCES.get(identifier, set()) | {identifier}, failed(found)
    assert found.verdict == "not as planned"
    assert one(found, identifier).observed != one(judge(SEEN), identifier).observed


_CONSEQUENCES: dict[str, set[str]] = {
    "V-THREAD-VCPU:plc:vcpu0": {"G-3:plc/vcpu0"},
    "V-THREAD-VCPU:plc:vcpu1": {"G-3:plc/vcpu1"},
    "G-3:plc/vcpu1": {"V-THREAD-VCPU:plc:vcpu1"},
    "V-MACHINE": {"V-LEDGER"},
    "V-LEDGER": {"V-MACHINE"},
    "R-MM-3:node1-2M": {"H-HP-1:2M"},
    "R-RT-4:ktimers/5": {"R-RT-4:ksoftirqd/5", "R-RT-4:irq_work/5"},
}


def test_every_kind_of_check_is_broken_by_a_test() -> None:
    broken = {identifier.split(":")[0] for identifier, _ in BREAKS}
    broken |= {identifier.split(":")[0] for identifiers, _ in test_cells.BREAKS for identifier in identifiers}
    broken |= {identifier for identifier, _, _ in test_passthrough.BREAKS}
    broken |= {identifier.split(":")[0] for identifier, _, _ in test_io_threads.BREAKS}
    assert {kind.id for kind in CATALOGUE} <= broken


def test_nohz_full_is_compared_with_its_own_list() -> None:
    """CPUs of performance guests are isolated too, and keep their tick (H-ISO-2)."""
    more = HOST.ledger.model_copy(update={"realtime": HOST.ledger.realtime | {2}, "shared": HOST.ledger.shared - {2}})
    host = HOST.model_copy(update={"ledger": more})
    assert one(judge(SEEN, host), "V-LEDGER-ISOLATED:nohz_full").status == "passed"
    changed = tuple(
        setting.model_copy(update={"new": "4-N"}) if setting.id == "H-ISO-2" else setting for setting in HOST.settings
    )
    found = judge(SEEN, HOST.model_copy(update={"settings": changed}))
    assert one(found, "V-LEDGER-ISOLATED:nohz_full").status == "not_checked"


def with_data_plane(cpu: int) -> HostPlan:
    ledger = HOST.ledger
    more = ledger.model_copy(update={"data_plane": frozenset({cpu}), "shared": ledger.shared - {cpu}})
    return HOST.model_copy(update={"ledger": more})


def test_the_data_plane_is_guarded_as_cpus_of_guests_are() -> None:
    cpu = min(HOST.ledger.shared)
    host = with_data_plane(cpu)
    found = judge(SEEN, host)
    assert one(found, "V-LEDGER").status == "passed"
    assert f"{cpu}" in one(found, "V-IRQ-AFFINITY").expected
    moved = judge(interrupt(str(cpu), managed=False)(SEEN), host)
    assert "V-IRQ-AFFINITY" in failed(moved)
    assert "V-IRQ-AFFINITY" not in failed(judge(interrupt(str(cpu), managed=False)(SEEN)))


def test_no_spinner_runs_beside_what_polls() -> None:
    """Two busy threads on one CPU bring the tick back: the finding would be the verifier's own doing."""
    cpu = min(HOST.ledger.shared)
    assert cpu not in spin_places(with_data_plane(cpu), {}, SEEN.facts)["cpus"]
    ledger = HOST.ledger.model_copy(
        update={"data_plane": HOST.ledger.realtime, "realtime": frozenset(), "idle": frozenset()}
    )
    assert spin_places(HOST.model_copy(update={"ledger": ledger, "guests": ()}), {}, SEEN.facts) == {}


# -- what counts as satisfied, and what as not checked ---------------------------------------------------------------


def test_a_managed_interrupt_that_may_fire_there_is_counted_not_condemned() -> None:
    found = judge(interrupt("5", managed=True)(SEEN))
    assert failed(found) == set()
    assert any("new (5)" in item.value for item in one(found, "V-IRQ-AFFINITY").evidence)


def test_a_file_that_this_kernel_lacks_on_purpose_is_satisfied_and_is_compared_once_it_is_there() -> None:
    absent = [setting for setting in HOST.settings if setting.status == "absent"]
    assert absent
    for one_absent in absent:
        assert isinstance(one_absent.target, FileValue)
        assert one(judge(SEEN), one_absent.id).status == "passed"
        wrong = judge(setting(one_absent.target.path, "something else")(SEEN))
        assert failed(wrong) == {one_absent.id}


def test_a_file_that_cannot_be_read_is_not_checked() -> None:
    path = "/proc/sys/vm/stat_interval"
    found = judge(facts(unreadable={path: "EACCES"})(SEEN))
    assert open_checks(found) == {"R-TIM-2:stat_interval": f"{path} cannot be read: EACCES"}
    assert found.verdict == "incomplete"


def test_a_boot_argument_that_stands_there_twice_counts_as_the_kernel_counts() -> None:
    again = kernel(command_line=CMDLINE + " nohz_full=2")
    assert failed(judge(again(SEEN))) == {"H-ISO-2"}
    behind = kernel(command_line=CMDLINE + " -- nohz_full=2")
    assert failed(judge(behind(SEEN))) == set(), "what stands behind -- is init's"


def test_an_interrupt_that_is_gone_needs_no_place() -> None:
    kept = tuple(row for row in SEEN.facts.interrupts if row.action != "rtc0")
    found = judge(facts(interrupts=kept)(SEEN))
    assert failed(found) == set() and "does not exist" in one(found, "R-IRQ-1:rtc0").observed


def test_a_guest_that_is_off_fails_once_and_leaves_the_rest_unchecked() -> None:
    off = guest(state="shut off", live=None, threads=None, memory=None)
    found = judge(off(SEEN))
    assert failed(found) == {"V-GUEST-RUNNING:plc"}
    unknown = open_checks(found).keys()
    assert {"V-THREAD-EMULATOR:plc", "V-PAGE-NODE:plc", "V-PAGE-LOCKED:plc", "C-1:plc/vcpu1"} <= unknown
    assert all(reason for reason in open_checks(found).values())


def test_without_libvirt_nothing_about_guests_passes() -> None:
    def without(seen: Observation) -> Observation:
        silent = GuestSeen("unknown", trouble="host: guest_state: virsh: No such file or directory (ENOENT)")
        return replace(seen, guests=dict.fromkeys(seen.guests, silent))

    found = judge(without(SEEN))
    about = [check for check in found.checks if check.guest]
    assert about and all(check.status == "not_checked" and "virsh" in check.reason for check in about)


def test_systemd_that_does_not_answer_leaves_units_unchecked() -> None:
    found = judge(replace(SEEN, units={}, trouble={"units": "no systemd"}))
    assert open_checks(found) == {"R-IRQ-4": "no systemd"}


# -- spinners -----------------------------------------------------------------------------------------------------


def test_what_a_guest_that_works_now_and_then_may_have_done_itself_is_not_judged() -> None:
    found = judge(spins("quiet", tenants=tenants(0.4), seconds=4.0, timer_interrupts=400)(SEEN))
    assert open_checks(found).keys() == {"V-SPIN-TICK"} and failed(found) == set()
    assert "400 in 4.0 s on CPU 5, but the guest used 40 %" in open_checks(found)["V-SPIN-TICK"]
    loaded = spins("loaded", tenants=tenants(0.4), seconds=4.0, cpu_seconds=0.5, involuntary_switches=3)
    assert open_checks(judge(loaded(SEEN))).keys() == {"V-SPIN-LOAD"}


def test_what_passes_with_a_guest_that_works_now_and_then_passes() -> None:
    seen = spins("quiet", tenants=tenants(0.4), seconds=4.0, timer_interrupts=5)(SEEN)
    seen = spins("loaded", tenants=tenants(0.4, woke=300), seconds=4.0, cpu_seconds=2.3, involuntary_switches=302)(seen)
    found = judge(seen)
    assert found.verdict == "as planned"
    assert "2 on CPU 5" in one(found, "V-SPIN-LOAD").observed, "its own waking up is left out"


def test_a_device_interrupt_is_never_the_guests_own_doing() -> None:
    seen = spins("quiet", tenants=tenants(0.4), seconds=4.0, device_interrupts={"eth0": 2})(SEEN)
    assert failed(judge(seen)) == {"V-SPIN-IRQ"}


def test_a_guest_that_is_busy_throughout_is_judged_itself() -> None:
    """The spinner starves beside it: its own numbers would be perfect."""
    busy = spins(
        "loaded", tenants=tenants(0.99), seconds=4.0, cpu_seconds=0.0, involuntary_switches=0, timer_interrupts=3
    )
    found = judge(busy(SEEN))
    assert failed(found) == set() and "the guest's vCPU itself" in one(found, "V-SPIN-LOAD").evidence[0].value
    ticking = spins("quiet", tenants=tenants(0.99), seconds=4.0, cpu_seconds=0.0, timer_interrupts=400)
    assert failed(judge(ticking(SEEN))) == {"V-SPIN-TICK"}


def intruder(share: float, switches: int = 100) -> list[dict[str, Any]]:
    grew = {"voluntary_switches": 0, "involuntary_switches": switches, "cpu_seconds": share * 4.0}
    return [{"tid": 4711, "name": "rival", **grew}]


@pytest.mark.parametrize("guest_share", [0.0, 0.4])
def test_an_intruder_beside_the_vcpu_is_not_the_guest(guest_share: float) -> None:
    """At ordinary priority it takes its half; that the guest works now and then, too, is no excuse for it."""
    beside: dict[str, Any] = {"tenants": tenants(guest_share), "intruders": intruder(0.5), "seconds": 4.0}
    seen = spins("quiet", timer_interrupts=400, cpu_seconds=2.0 - 4 * guest_share, **beside)(SEEN)
    seen = spins("loaded", involuntary_switches=200, cpu_seconds=2.0 - 4 * guest_share, **beside)(seen)
    found = judge(seen)
    assert failed(found) == {"V-SPIN-TICK", "V-SPIN-LOAD"} and open_checks(found) == {}
    for check in found.failed:
        assert "rival (4711) used 50 % of CPU 5, in the vCPU's cgroup and not of the guest" in check.observed
    assert "400 in 4.0 s" in one(found, "V-SPIN-TICK").observed


def test_an_intruder_that_leaves_nothing_to_the_spinner_is_not_the_vcpu_itself() -> None:
    """At real-time priority it has the CPU to itself, so that even the tick rests: that is nobody's isolation."""
    beside: dict[str, Any] = {"tenants": IDLE, "intruders": intruder(0.95, 0), "seconds": 4.0, "cpu_seconds": 0.2}
    seen = spins("loaded", involuntary_switches=0, **beside)(spins("quiet", timer_interrupts=3, **beside)(SEEN))
    found = judge(seen)
    assert failed(found) == {"V-SPIN-TICK", "V-SPIN-LOAD"}
    assert "3 in 4.0 s on CPU 5; rival (4711) used 95 %" in one(found, "V-SPIN-TICK").observed
    assert not any("the guest's vCPU itself" in one(found, id_).evidence[0].value for id_ in failed(found))


def test_an_intruder_that_sleeps_changes_no_count() -> None:
    beside: dict[str, Any] = {"tenants": IDLE, "intruders": intruder(0.01, 1)}
    assert failed(judge(spins("quiet", **beside)(spins("loaded", **beside)(SEEN)))) == set()


def test_a_longer_run_is_allowed_more_ticks_in_proportion() -> None:
    assert failed(judge(spins("quiet", timer_interrupts=18, seconds=8.0)(SEEN))) == set()
    assert failed(judge(spins("quiet", timer_interrupts=19, seconds=8.0, tenants=IDLE)(SEEN))) == {"V-SPIN-TICK"}


def under_load(own: int, control: int, **own_update: Any) -> Findings:
    """Judged with so many involuntary switches on the real-time CPU and on the housekeeping CPU."""
    assert SEEN.control is not None
    seen = spins("loaded", involuntary_switches=own, tenants=IDLE, **own_update)(SEEN)
    return judge(spins("loaded", cpu=SEEN.control, involuntary_switches=control)(seen))


@pytest.mark.parametrize("own", [0, 1, 4, 5])
@pytest.mark.parametrize("control", [0, 1, 4])
def test_a_load_that_disturbs_nobody_proves_nothing(own: int, control: int) -> None:
    found = under_load(own, control)
    assert open_checks(found).keys() == {"V-SPIN-LOAD"} and failed(found) == set()
    assert f"away only {control} times, CPU {CPU} {own} times" in open_checks(found)["V-SPIN-LOAD"]
    assert found.verdict == "incomplete"


def test_a_load_that_disturbs_nobody_does_not_excuse_a_cpu_that_somebody_takes() -> None:
    assert failed(under_load(0, 0, cpu_seconds=1.0)) == {"V-SPIN-LOAD"}


@pytest.mark.parametrize(
    ("own", "control", "status"),
    [(0, 5, "passed"), (1, 5, "passed"), (2, 5, "failed"), (20, 100, "passed"), (21, 100, "failed")],
)
def test_five_times_fewer_is_the_line(own: int, control: int, status: str) -> None:
    assert one(under_load(own, control), "V-SPIN-LOAD").status == status


def test_without_spinners_interrupts_are_counted_all_the_same() -> None:
    window = {"rows": (SEEN.quiet or {})["rows"], "seconds": 1.0}
    quick = replace(SEEN, quiet=None, loaded=None, interrupts=window)
    found = judge(quick, options=Options(spinners=False))
    assert open_checks(found).keys() == {"V-SPIN-TICK", "V-SPIN-LOAD", "V-SPIN-IRQ"}
    assert one(found, "V-IRQ-COUNT").status == "passed"


def test_a_probe_that_refuses_the_spinner_says_why() -> None:
    refused = replace(SEEN, quiet=None, loaded=None, trouble={"quiet": "EBUSY: taken", "loaded": "no hackbench"})
    found = open_checks(judge(refused))
    assert found["V-SPIN-TICK"] == found["V-SPIN-IRQ"] == "EBUSY: taken"
    assert found["V-SPIN-LOAD"] == "no hackbench" and "taken" in found["V-IRQ-COUNT"]


def test_a_host_that_isolates_nothing_has_no_spinner_and_no_interrupt_checks() -> None:
    ledger = HOST.ledger.model_copy(
        update={"realtime": frozenset(), "idle": frozenset(), "shared": HOST.ledger.shared | HOST.ledger.isolated}
    )
    settings = tuple(one for one in HOST.settings if not isinstance(one.target, BootArgument))
    plain = HOST.model_copy(update={"ledger": ledger, "settings": settings, "guests": ()})
    found = judge(SEEN, plain)
    assert not [check for check in found.checks if check.id.startswith(("V-SPIN", "V-IRQ", "V-THREAD"))]


def test_long_lists_are_shortened_in_what_a_person_reads() -> None:
    assert shorten(list("abcdefgh"), 3) == "a, b, c and 5 more"
    assert shorten(list("ab"), 3) == "a, b"
