"""What is measured where, and what is said when a part of it cannot be: on recorded answers of a probe."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, Self

import pytest

from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.errors import EvenkeelError, Unreachable, WrongInput
from evenkeel.machines.protocol import OnProgress, ProbeError
from evenkeel.measure.guest import guest_exec
from evenkeel.measure.host import Wish, guess_moment, measure_host
from evenkeel.verify.observe import GuestSeen, Options, observe, spin_places
from tests.verify.record import load

PLAN, SEEN = load()
HOST = PLAN.hosts[0]
RECORDED = Path(__file__).parent / "recorded"
CPU = 5


class Replay:
    """A conversation with the recorded host.  ``refuse``: operation -> errno; ``asked``: what was asked, in order."""

    def __init__(self, **refuse: str) -> None:
        self.refuse = refuse
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        self.asked.append((op, args))
        if on_progress:
            on_progress(1, 2, "counting")
        if self.refuse.get(op) == "lost":
            raise Unreachable("cell: connection lost")
        if op in self.refuse:
            raise ProbeError("cell", op, {"message": f"{op} refused", "errno": self.refuse[op]})
        match op:
            case "threads":
                return {"pid": 1, "threads": SEEN.guests[args["guest"]].threads}
            case "numa_maps":
                return SEEN.guests[args["guest"]].memory
            case "guest_state":
                return {"state": "running", "live": "<x/>", "defined": "<x/>"}
            case "spin" | "spin_guest":
                return SEEN.loaded if args.get("load") else SEEN.quiet
            case "together":
                jobs = [self.job(job) for job in args["jobs"]]
                return {"load": "hackbench -g 1 on 0" if args["load"] else "idle", "holders": [], "jobs": jobs}
            case "units":
                return {}
            case _:
                return []

    def job(self, job: dict[str, Any]) -> Any:
        place = f"{job['tool']}_{'guest' if 'guest' in job else 'host'}"
        self.asked.append((place, job))
        if place in self.refuse:
            return {"error": {"message": f"{place} refused", "errno": self.refuse[place]}}
        if job["tool"] == "timerlat":
            one = {"counts": {"900": 2000}, "samples": 2000, "sum": 1_800_000, "min": 900, "max": 900, "lost": 0}
            cpus = job["vcpus"] if "guest" in job else job["cpus"]
            kernel = "6.1-in-guest" if "guest" in job else "6.12-on-host"
            counted = {str(cpu): {"thread": one, "irq": one} for cpu in cpus}
            return {"argv": ["timerlat"], "kernel": kernel, "cpus": counted}
        answer = json.loads((RECORDED / f"{place.replace('_', '-')}.json").read_text())
        if place == "cyclictest_host":
            answer["json"]["thread"].pop("1")
        return answer

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def measure(probe: Replay, wish: Wish | None = None, **more: Any) -> Any:
    return measure_host(HOST, probe, SEEN.facts, moment="after", wish=wish, **more)


def test_spinners_then_cyclictest_on_the_host_then_the_real_time_guest() -> None:
    probe = Replay()
    evidence = measure(probe, Wish(seconds=7, load=("hackbench",)), plan_sha256="p")
    assert [op for op, _ in probe.asked if op != "threads"] == [
        "spin", "spin", "together", "cyclictest_host", "cyclictest_guest", "spin_guest",
    ]  # fmt: skip
    calls = {op: args for op, args in probe.asked}
    assert calls["cyclictest_host"]["cpus"] == [CPU] and calls["together"]["seconds"] == 7
    assert calls["cyclictest_guest"]["vcpus"] == [1] and calls["cyclictest_guest"]["guest"] == "plc"
    assert calls["together"]["load"] == {"tool": "hackbench", "groups": 1}
    assert [latency.label for latency in evidence.latencies] == [EMULATION_NOTE] * 2
    assert evidence.conditions.plan_sha256 == "p" and evidence.conditions.facts_sha256 == SEEN.facts.sha256()


def test_switches_by_the_guest_whose_cpu_it_is_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that its vCPU wakes up it takes the CPU from the spinner once; nobody else does."""
    quiet = json.loads(json.dumps(SEEN.quiet))
    (spun,) = quiet["spins"]
    spun |= {"involuntary_switches": 84, "tenants": [{"voluntary_switches": 83}]}
    monkeypatch.setattr(Replay, "call", _answers(Replay.call, spin=quiet))
    (spin, *_) = measure(Replay()).spins
    assert (spin.involuntary_switches, spin.guest_switches) == (84, 83)


def _answers(call: Any, **known: Any) -> Any:
    return lambda self, op, /, **args: known[op] if op in known else call(self, op, **args)


def test_a_deadline_is_measured_whatever_the_goal() -> None:
    """Only what is measured can be met: a balanced guest with a deadline too, and none that states nothing."""
    (plc,) = [guest for guest in HOST.guests if guest.name == "plc"]
    ordinary = tuple(vcpu.model_copy(update={"policy": "other", "priority": 0}) for vcpu in plc.vcpus)
    for latency, measured in ((1_000_000, ["plc"]), (None, [])):
        guest = plc.model_copy(update={"goal": "balanced", "vcpus": ordinary, "latency_ns": latency})
        probe = Replay()
        measure_host(HOST.model_copy(update={"guests": (guest,)}), probe, SEEN.facts, moment="after")
        assert [args["guest"] for op, args in probe.asked if op == "cyclictest_guest"] == measured


def test_a_guest_alone_leaves_the_host_in_peace() -> None:
    probe = Replay()
    evidence = measure(probe, Wish(guest="plc"))
    assert {op for op, _ in probe.asked} == {"threads", "together", "cyclictest_guest", "spin_guest"}
    assert {latency.guest for latency in evidence.latencies} == {"plc"}


def test_a_guest_that_was_paused_meanwhile_has_periods_without_a_sample() -> None:
    """Its clock stood still, so its cyclictest missed nothing; by the host's clock it took a minute for two seconds."""

    class Paused(Replay):
        def job(self, job: dict[str, Any]) -> Any:
            return {**super().job(job), "spent_s": 60.0 if "guest" in job else 2.3}

    expected = {one.where: one.expected for one in measure(Paused(), Wish(seconds=2)).latencies}
    assert expected == {"host": 2000, "guest": 60_000}, "which the verdict says, and calls it not provable"


def test_no_load_is_no_load() -> None:
    probe = Replay()
    measure(probe)
    assert all(not args.get("load") for _, args in probe.asked)


def test_a_guest_without_an_agent_is_a_note_unless_it_was_asked_for() -> None:
    notes: list[str] = []
    evidence = measure(Replay(cyclictest_guest="ENOTCONN"), on_note=notes.append)
    assert [latency.where for latency in evidence.latencies] == ["host"]
    assert len(notes) == 1 and "qemu-guest-agent" in notes[0] and "plc" in notes[0]
    with pytest.raises(EvenkeelError) as caught:
        measure(Replay(cyclictest_guest="ENOTCONN"), Wish(guest="plc"))
    assert "qemu-guest-agent" in str(caught.value.hint)


def test_a_guest_that_does_not_run() -> None:
    notes: list[str] = []
    evidence = measure(Replay(threads="ESRCH"), on_note=notes.append)
    assert notes == ["guest plc does not run: not measured"]
    assert {spin.where for spin in evidence.spins} == {"host"}
    with pytest.raises(EvenkeelError, match="plc does not run"):
        measure(Replay(threads="ESRCH"), Wish(guest="plc"))


def test_a_lost_connection_is_no_note() -> None:
    with pytest.raises(Unreachable):
        measure(Replay(together="lost"), on_note=lambda text: None)


@pytest.mark.parametrize(
    ("op", "code", "cure"),
    [
        ("cyclictest_host", errno.ENOENT, "rt-tests"),
        ("spin", errno.EPERM, "root"),
        ("spin", errno.EOPNOTSUPP, "cgroup v2"),
    ],
)
def test_what_is_missing_on_the_host_has_a_cure(op: str, code: int, cure: str) -> None:
    """By the names that the probe gives the numbers: of two names of one number it gives one."""
    with pytest.raises(EvenkeelError) as caught:
        measure(Replay(**{op: errno.errorcode[code]}))
    assert cure in str(caught.value.hint)


def test_a_guest_that_is_not_in_the_plan() -> None:
    with pytest.raises(WrongInput, match="no guest nobody"):
        measure(Replay(), Wish(guest="nobody"))


def test_progress_goes_forward_to_its_end() -> None:
    told: list[tuple[int, int, str]] = []
    measure(Replay(), Wish(load=("hackbench",)), on_progress=lambda *what: told.append(what))
    done = [one for one, _, _ in told]
    assert done == sorted(done) and told[-1][0] == told[-1][1] > 0


def test_whether_the_plan_is_applied_is_seen_in_the_kernel() -> None:
    assert guess_moment(HOST, SEEN.facts) == "after"
    assert guess_moment(HOST, SEEN.facts.model_copy(update={"nohz_full": frozenset()})) == "before"


def test_programs_in_a_guest_end_with_words() -> None:
    with pytest.raises(EvenkeelError) as caught:
        guest_exec(Replay(guest_exec="ETIMEDOUT"), "plc", ["true"])
    assert "overloaded" in str(caught.value.hint)


# -- where a spinner goes -----------------------------------------------------------------------------------------


def test_beside_the_vcpu_where_its_guest_runs() -> None:
    places = spin_places(HOST, SEEN.guests, SEEN.facts)
    assert places["cpus"] == [CPU] and places["isolate"] == []
    assert places["cgroups"][str(CPU)].endswith("/libvirt/vcpu1")
    (vcpu,) = [thread for thread in SEEN.guests["plc"].threads or () if thread["vcpu"] == 1]
    assert places["vcpus"] == {str(CPU): vcpu["tid"]}


def test_in_a_partition_of_its_own_where_none_runs_and_plainly_on_a_host_that_is_not_tuned() -> None:
    off = {name: GuestSeen("shut off") for name in SEEN.guests}
    assert spin_places(HOST, off, SEEN.facts) == {"cpus": [CPU], "isolate": [CPU], "cgroups": {}, "vcpus": {}}
    untuned = SEEN.facts.model_copy(update={"nohz_full": frozenset()})
    assert spin_places(HOST, off, untuned) == {"cpus": [CPU], "isolate": [], "cgroups": {}, "vcpus": {}}


def test_a_vcpu_that_is_somewhere_else_lends_its_cgroup_to_nobody() -> None:
    moved = [{**thread, "cpus": "0-3"} for thread in SEEN.guests["plc"].threads or ()]
    guests = {**SEEN.guests, "plc": GuestSeen("running", threads=moved)}
    assert spin_places(HOST, guests, SEEN.facts)["cgroups"] == {}


# -- looking for verification ------------------------------------------------------------------------------------


def test_what_the_machine_refuses_is_kept_with_its_reason_and_the_rest_is_looked_at() -> None:
    seen = observe(HOST, Replay(intruders="EPERM", spin="EBUSY", numa_maps="EACCES"), SEEN.facts, Options())
    assert seen.intruders is None and seen.quiet is None and seen.loaded is None
    assert {"intruders", "quiet", "loaded", "plc", "hmi"} == seen.trouble.keys()
    assert seen.guests["plc"].threads and seen.guests["plc"].memory is None


def test_a_lost_connection_ends_the_look() -> None:
    with pytest.raises(Unreachable):
        observe(HOST, Replay(spin="lost"), SEEN.facts, Options())


def test_quick_runs_no_spinner_and_counts_interrupts() -> None:
    probe = Replay()
    seen = observe(HOST, probe, SEEN.facts, Options(spinners=False))
    assert "spin" not in {op for op, _ in probe.asked} and "interrupts" in {op for op, _ in probe.asked}
    assert seen.quiet is None
