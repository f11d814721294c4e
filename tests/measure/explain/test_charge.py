"""Charging the time of a late sample: what each kind of event is called, and what no event may ever do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.explanation import NO_CAUSE, Kind
from evenkeel.measure.explain.charge import CLOCKS, SVM_EXITS, Painted, Scene, charges, explain, paint, usual
from evenkeel.measure.explain.timeline import (
    IRQ,
    NMI,
    PREEMPTED,
    RUNS,
    SLEEPS,
    SOFTIRQ,
    THREAD,
    WOKEN,
    Below,
    GuestTimeline,
    HostTimeline,
    Interrupts,
    Spans,
    Steps,
)

VCPU, HOG, EMULATOR, LESSER = 100, 200, 101, 300
HOME = 3
MS = 1_000_000


def ints(numbers: Sequence[int]) -> Any:
    return np.array(numbers, np.int64)


def steps(*changes: tuple[int, int], cpu: int = HOME) -> Steps:
    return Steps(ints([at for at, _ in changes]), ints([what for _, what in changes]), ints([cpu] * len(changes)))


def spans(*stretches: tuple[int, int]) -> Spans:
    return Spans.of(ints([start for start, _ in stretches]), ints([end for _, end in stretches]))


#: As the kernel counts: 97 is FIFO 2.
PRIORITIES = {VCPU: 97, HOG: 49, EMULATOR: 90, LESSER: 120, 0: 120}


def host(**changes: Any) -> HostTimeline:
    """A vCPU that runs all the time."""
    running = changes.get("running", {HOME: steps((0, VCPU))})
    plain = HostTimeline(
        running=running,
        ranks={cpu: replace(one, what=ints([PRIORITIES[pid] for pid in one.what])) for cpu, one in running.items()},
        own=PRIORITIES[VCPU],
        thread=steps((0, RUNS)),
        inside=None,
        exits=ints([]),
        moves=ints([]),
        interrupts={},
        nmis={},
        names={0: "idle", HOG: "hog", EMULATOR: "qemu-system-x86", LESSER: "backup"},
    )
    return replace(plain, **changes)


def scene(seen: HostTimeline | None = None, guest: GuestTimeline | None = None, below: Below | None = None) -> Scene:
    return Scene(
        host=seen or host(),
        guest=guest or GuestTimeline(ints([]), ints([]), {}, {}),
        tid=VCPU,
        home=frozenset({HOME}),
        family=frozenset({EMULATOR}),
        exit_names=SVM_EXITS,
        below=below,
    )


def told(one: Scene, start: int = 0, end: int = 10 * MS) -> dict[tuple[Kind, str], int]:
    found = charges(explain(one, start, end))
    assert sum(charge.ns for charge in found) == end - start
    return {(charge.kind, charge.who): charge.ns for charge in found}


def waiting_for(pid: int, state: int = PREEMPTED, **changes: Any) -> HostTimeline:
    """A vCPU that waits from 2 to 6 ms while ``pid`` runs."""
    return host(
        thread=steps((0, RUNS), (2 * MS, state), (6 * MS, RUNS)),
        running={HOME: steps((0, VCPU), (2 * MS, pid), (6 * MS, VCPU))},
        **changes,
    )


def test_a_better_task_on_the_host() -> None:
    assert told(scene(waiting_for(HOG))) == {(Kind.waits, "hog"): 4 * MS, (Kind.unexplained, ""): 6 * MS}


def test_two_tasks_share_the_blame() -> None:
    seen = host(
        thread=steps((0, RUNS), (2 * MS, PREEMPTED), (6 * MS, RUNS)),
        running={HOME: steps((0, VCPU), (2 * MS, HOG), (3 * MS, EMULATOR), (6 * MS, VCPU))},
    )
    found = told(scene(seen))
    assert found[Kind.waits, "hog"] == MS and found[Kind.emulator, "qemu-system-x86"] == 3 * MS


def test_a_lesser_task_or_none_means_throttling() -> None:
    assert told(scene(waiting_for(LESSER)))[Kind.throttled, "backup"] == 4 * MS
    assert told(scene(waiting_for(0)))[Kind.throttled, "idle"] == 4 * MS


def test_a_priority_that_was_lent_once_is_no_priority_later() -> None:
    """RCU lends one to who was pre-empted while it read; a lock to who holds it.  Seen: an ordinary task that ran for
    40 ms on the fair server's account was called waited for, since it had been FIFO 11 for a moment before."""
    waits = waiting_for(LESSER)
    assert told(scene(waits))[Kind.throttled, "backup"] == 4 * MS
    lent = {HOME: replace(waits.ranks[HOME], what=ints([97, 88, 97]))}
    assert told(scene(replace(waits, ranks=lent)))[Kind.waits, "backup"] == 4 * MS


def test_a_lesser_task_that_is_not_left_after_a_wake_up_is_waited_for() -> None:
    assert told(scene(waiting_for(LESSER, WOKEN)))[Kind.waits, "backup"] == 4 * MS


def test_an_idle_cpu_that_wakes_is_no_cause() -> None:
    assert told(scene(waiting_for(0, WOKEN))) == {(Kind.unexplained, ""): 10 * MS}


def test_a_switch_is_no_throttling() -> None:
    seen = host(
        thread=steps((0, RUNS), (2 * MS, PREEMPTED), (2 * MS + 50_000, RUNS)),
        running={HOME: steps((0, VCPU), (2 * MS, 0), (2 * MS + 50_000, VCPU))},
    )
    assert set(told(scene(seen))) == {(Kind.unexplained, "")}


def test_a_vcpu_that_was_moved() -> None:
    seen = host(
        thread=Steps(ints([0, 2 * MS, 6 * MS]), ints([RUNS, WOKEN, RUNS]), ints([HOME, 0, 0])),
        running={HOME: steps((0, VCPU)), 0: steps((0, HOG), (6 * MS, VCPU), cpu=0)},
        moves=ints([2 * MS]),
    )
    assert told(scene(seen))[Kind.migrated, "hog"] == 4 * MS


def test_interrupts_where_the_vcpu_was_moved_to_come_of_the_move() -> None:
    """On its own CPU there is no tick; an NMI would have met it there too."""
    there = {0: Interrupts(spans((3 * MS, 5 * MS)), ["local_timer"])}
    nmi = {0: Interrupts(spans((6 * MS, 7 * MS)), ["NMI"])}
    seen = host(thread=Steps(ints([0, 2 * MS]), ints([RUNS, RUNS]), ints([HOME, 0])), interrupts=there, nmis=nmi)
    found = told(scene(seen))
    assert found[Kind.migrated, "local_timer"] == 2 * MS and found[Kind.host_nmi, "NMI"] == MS
    assert not any(kind == Kind.host_irq for kind, _ in found)


def test_a_timer_of_the_host_that_came_late() -> None:
    """The vCPU sleeps from before its timer is due; what wakes it decides whether that is slack."""
    thread = steps((0, SLEEPS), (5 * MS, WOKEN), (6 * MS, RUNS))
    running = {HOME: steps((0, 0), (6 * MS, VCPU))}
    for timed, kind in (([5 * MS], Kind.host_timer), ([], Kind.asleep), ([5 * MS + 1], Kind.asleep)):
        assert told(scene(host(thread=thread, running=running, timed=ints(timed))), 2 * MS, 8 * MS) == {
            (kind, ""): 3 * MS,
            (Kind.unexplained, ""): 3 * MS,
        }
    # Not woken within the window: nothing is known of what will.
    late = host(thread=thread, running=running, timed=ints([5 * MS]))
    assert told(scene(late), 2 * MS, 4 * MS) == {(Kind.asleep, ""): 2 * MS}


def test_interrupts_of_the_host_count_while_the_vcpu_runs() -> None:
    storm = {HOME: Interrupts(spans((1 * MS, 2 * MS), (4 * MS, 5 * MS)), ["nvme0q1", "nvme0q1"])}
    assert told(scene(host(interrupts=storm)))[Kind.host_irq, "nvme0q1"] == 2 * MS
    assert told(scene(waiting_for(HOG, interrupts=storm)))[Kind.host_irq, "nvme0q1"] == 1 * MS
    nmi = {HOME: Interrupts(spans((MS, 2 * MS)), ["NMI"])}
    assert told(scene(host(interrupts=storm, nmis=nmi)))[Kind.host_nmi, "NMI"] == MS


def test_exits() -> None:
    inside = steps((0, -1), (MS, 0), (2 * MS, -1), (3 * MS, 1), (5 * MS, -1), (6 * MS, 2), (7 * MS, -1))
    found = told(scene(host(inside=inside, exits=ints([0x7B, 0x400, 0x60]))))
    assert found == {
        (Kind.exits, "I/O port"): MS,
        (Kind.page_fault, ""): 2 * MS,
        (Kind.delivery, "interrupt"): MS,
        (Kind.unexplained, ""): 6 * MS,
    }


def test_the_way_from_a_halt_to_the_thread() -> None:
    """It sleeps, is woken, enters, takes the interrupt, switches: each part of the way has its name."""
    inside = steps((0, 0), (4 * MS, -1))
    thread = steps((0, SLEEPS), (3 * MS, RUNS))
    guest = GuestTimeline(ints([10 * MS]), ints([10 * MS]), {IRQ: spans((5 * MS, 8 * MS))}, {IRQ: ["local_timer"]},
                          ints([6 * MS]))  # fmt: skip
    assert told(scene(host(inside=inside, thread=thread, exits=ints([0x78])), guest)) == {
        (Kind.asleep, ""): 3 * MS,
        (Kind.delivery, "HLT"): MS,
        (Kind.guest_kernel, "from halt to interrupt"): MS,
        (Kind.guest_irq, "local_timer"): 3 * MS,
        (Kind.guest_kernel, "from interrupt to thread"): 2 * MS,
    }


def test_before_the_interrupt_a_guest_that_was_not_halted_is_not_blamed() -> None:
    """It may have held interrupts off, or the host was late with its timer: no event tells which."""
    inside = steps((0, 0), (MS, -1))
    guest = GuestTimeline(ints([10 * MS]), ints([10 * MS]), {}, {}, ints([6 * MS]))
    for reason, last in ((0x7B, Kind.exits), (0x60, Kind.delivery)):
        found = told(scene(host(inside=inside, exits=ints([reason])), guest))
        assert {kind for kind, _ in found} == {last, Kind.unexplained, Kind.guest_kernel}
        assert found[Kind.unexplained, ""] == 5 * MS
        assert found[Kind.guest_kernel, "from interrupt to thread"] == 4 * MS


def test_what_every_sample_goes_through_is_usual_and_only_far_beyond_that_it_is_named() -> None:
    """Nine samples with an exit of 0.1 ms, a tenth with one of 0.9 or of 4 ms; the tenth has a hog too."""
    long = {0.9: False, 4.0: True}
    for took, named in long.items():
        lengths = [*[0.1] * 9, took]
        changes = [(0, -1)]
        for number, ms in enumerate(lengths):
            at = number * 10 * MS
            changes += [(at + MS, number), (at + MS + int(ms * MS), -1)]
        hog = steps((0, VCPU), (95 * MS, HOG), (99 * MS, VCPU))
        thread = steps((0, RUNS), (95 * MS, PREEMPTED), (99 * MS, RUNS))
        seen = scene(host(inside=steps(*changes), exits=ints([0x7C] * 10), running={HOME: hog}, thread=thread))
        samples = [((number + 1) * 10 * MS, 10 * MS) for number in range(10)]
        as_ever = usual(seen, samples)
        assert as_ever[Kind.exits, "MSR"] == 0.1 * MS and (Kind.waits, "hog") not in as_ever
        last = explain(seen, 90 * MS, 100 * MS)
        verdicts = {charge.kind for charge in charges(last, as_ever) if charge.named}
        assert verdicts == ({Kind.exits, Kind.waits} if named else {Kind.waits})
        # An emulator takes its time within what every sample goes through, and no trace sees it.
        assert {charge.kind for charge in charges(last, as_ever, emulated=True) if charge.named} == {Kind.waits}


def test_named_is_a_third_of_what_host_and_guest_took_and_on_an_emulated_host_not_little() -> None:
    """Ten ms, of which the machine under the host took six: of the other four, a quarter is no reason."""
    for took, named in ((1.0, False), (1.4, True)):
        parts = [
            Painted(0, int(took * MS), Kind.waits, "hog"),
            Painted(int(took * MS), 4 * MS, Kind.unexplained, ""),
            Painted(4 * MS, 10 * MS, Kind.below, "make"),
        ]
        assert [charge.kind for charge in charges(parts) if charge.named] == [Kind.below, *[Kind.waits] * named]
        late = [*parts, Painted(10 * MS, 20 * MS, Kind.host_timer, "")]
        assert [charge.kind for charge in charges(late) if charge.named] == [Kind.host_timer, Kind.below]
        # An emulator's timer is late at any time, and is no reason; nor does it make another one smaller.
        by_emulator = charges(late, emulated=True)
        assert [charge.kind for charge in by_emulator if charge.named] == [Kind.below, *[Kind.waits] * named]
    little = [Painted(0, MS // 10, Kind.waits, "hog")]
    assert [charge.named for charge in charges(little)] == [True], "a tenth of a millisecond is much on real hardware"
    assert [charge.named for charge in charges(little, emulated=True)] == [False]


def test_little_slack_and_the_unexplained_are_never_named() -> None:
    parts = [
        Painted(0, MS // 5, Kind.waits, "hog"),  # of 18 ms
        Painted(MS // 5, 9 * MS, Kind.asleep, ""),
        Painted(9 * MS, 18 * MS, Kind.unexplained, ""),
    ]
    assert not any(charge.named for charge in charges(parts))


def test_sleep_after_an_exit_is_the_hypervisors_and_after_hlt_is_slack() -> None:
    inside = steps((0, -1), (MS, 0), (3 * MS, -1), (5 * MS, 1), (9 * MS, -1))
    thread = steps((0, RUNS), (MS, SLEEPS), (3 * MS, RUNS), (5 * MS, SLEEPS), (9 * MS, RUNS))
    found = told(scene(host(inside=inside, thread=thread, exits=ints([0x7B, 0x78]))))
    assert found == {
        (Kind.exits, "I/O port"): 2 * MS,
        (Kind.asleep, ""): 4 * MS,
        (Kind.guest_kernel, "from halt to interrupt"): MS,
        (Kind.unexplained, ""): 3 * MS,
    }


def test_sleep_is_slack_whatever_happens_in_the_guest() -> None:
    noise = GuestTimeline(ints([]), ints([]), {THREAD: spans((0, 10 * MS))}, {THREAD: ["cron"]})
    found = told(scene(host(thread=steps((0, SLEEPS), (4 * MS, RUNS))), noise))
    assert found == {(Kind.asleep, ""): 4 * MS, (Kind.guest_thread, "cron"): 6 * MS}


def test_the_guest_in_the_order_of_its_contexts() -> None:
    noise = GuestTimeline(
        ints([]),
        ints([]),
        {
            THREAD: spans((0, 9 * MS)),
            SOFTIRQ: spans((1 * MS, 5 * MS)),
            IRQ: spans((2 * MS, 4 * MS)),
            NMI: spans((3 * MS, 4 * MS)),
        },
        {THREAD: ["cron"], SOFTIRQ: ["NET_RX"], IRQ: ["eth0"], NMI: ["NMI"]},
    )
    assert told(scene(guest=noise)) == {
        (Kind.guest_thread, "cron"): 5 * MS,
        (Kind.guest_softirq, "NET_RX"): 2 * MS,
        (Kind.guest_irq, "eth0"): MS,
        (Kind.guest_nmi, "NMI"): MS,
        (Kind.unexplained, ""): MS,
    }


def test_what_the_host_took_is_not_the_fault_of_the_guest() -> None:
    noise = GuestTimeline(ints([]), ints([]), {THREAD: spans((0, 10 * MS))}, {THREAD: ["cron"]})
    assert told(scene(waiting_for(HOG), noise)) == {
        (Kind.waits, "hog"): 4 * MS,
        (Kind.guest_thread, "cron"): 6 * MS,
    }


def test_the_machine_below_comes_first_and_may_sleep_only_when_the_vcpu_does() -> None:
    taken = Spans(ints([2 * MS]), ints([5 * MS]), ints([7]), 3 * MS)
    below = Below({HOME: taken}, {HOME: spans((6 * MS, 7 * MS))}, spans(), {7: "make"})
    found = told(scene(waiting_for(HOG), below=below))
    assert found[Kind.below, "make"] == 3 * MS and found[Kind.waits, "hog"] == 1 * MS
    assert found[Kind.below, "nothing: it slept"] == MS
    asleep = told(scene(host(thread=steps((0, SLEEPS))), below=below))
    assert asleep == {(Kind.below, "make"): 3 * MS, (Kind.asleep, ""): 7 * MS}


# -- what must hold for any events --------------------------------------------------------------------------------

TIMES = st.integers(-1000, 3000)
LAYERS = st.lists(
    st.lists(st.tuples(TIMES, TIMES, st.sampled_from(list(Kind)), st.sampled_from(["a", "b"])), max_size=6), max_size=6
)


@given(TIMES, TIMES, LAYERS)
def test_charges_are_the_window_split(start: int, end: int, layers: Any) -> None:
    painted = paint(start, end, layers)
    place = start
    for part in painted:
        assert part.start == place < part.end
        place = part.end
    assert place == max(start, end) if painted else start >= end
    assert sum(charge.ns for charge in charges(painted)) == max(0, end - start)


@given(LAYERS)
def test_the_first_layer_gets_all_that_it_covers(layers: Any) -> None:
    painted = paint(0, 2000, layers)
    if not layers:
        return
    first = {(kind, who) for *_, kind, who in layers[0]}
    covered = {n for start, end, *_ in layers[0] for n in range(max(0, start), min(2000, end))}
    given_to_it = {n for part in painted if (part.kind, part.who) in first for n in range(part.start, part.end)}
    assert covered <= given_to_it


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    def some_steps(values: Sequence[int]) -> Steps:
        times = sorted(draw(st.lists(st.integers(-500, 3000), max_size=8, unique=True)))
        what = [draw(st.sampled_from(values)) for _ in times]
        return Steps(ints(times), ints(what), ints([draw(st.sampled_from([0, HOME])) for _ in times]))

    def some_spans() -> Spans:
        pairs = draw(st.lists(st.tuples(st.integers(-500, 3000), st.integers(0, 2000)), max_size=4))
        return spans(*((start, start + length) for start, length in pairs))

    noise = {number: some_spans() for number in (NMI, IRQ, SOFTIRQ, THREAD)}
    names: dict[int, Sequence[str]] = {number: ["x"] * len(stretch.end) for number, stretch in noise.items()}
    inside = some_steps([-1, 0, 1])
    interrupts = some_spans()
    seen = host(
        running={HOME: some_steps([VCPU, HOG, EMULATOR, LESSER, 0]), 0: some_steps([VCPU, HOG])},
        thread=some_steps([RUNS, PREEMPTED, SLEEPS, WOKEN]),
        inside=inside if len(inside.at) else None,
        exits=ints([0x400, 0x7C]),
        moves=ints(sorted(draw(st.lists(st.integers(0, 3000), max_size=2)))),
        interrupts={HOME: Interrupts(interrupts, ["nvme"] * len(interrupts.end))},
    )
    taken = some_spans()
    below = Below({HOME: taken}, {HOME: some_spans()}, some_spans(), {})
    return scene(seen, GuestTimeline(ints([]), ints([]), noise, names), draw(st.sampled_from([None, below])))


@given(scenes(), st.integers(0, 2000), st.integers(1, 1000))
def test_whatever_was_recorded_nothing_is_charged_twice_and_slack_is_never_claimed(
    one: Scene, start: int, length: int
) -> None:
    painted: list[Painted] = explain(one, start, start + length)
    assert sum(part.end - part.start for part in painted) == length
    asleep = [span for span in one.host.thread.cut(start, start + length) if span.what == SLEEPS]
    for part in painted:
        # Sleep after an exit other than HLT is the hypervisor's; the machine below may take the thread of the timer.
        if part.kind in (Kind.below, Kind.exits, Kind.page_fault, *NO_CAUSE):
            continue
        assert not any(max(part.start, span.start) < min(part.end, span.end) for span in asleep)


# -- where the clocks can be off ----------------------------------------------------------------------------------


def test_within_the_error_of_the_clocks_of_a_change_nobody_is_charged() -> None:
    """A hog from 2 to 6 ms, while a thread of the guest has the rest; the clocks may be off by 0.5 ms."""
    noise = GuestTimeline(ints([]), ints([]), {THREAD: spans((0, 10 * MS))}, {THREAD: ["cron"]})
    assert told(replace(scene(waiting_for(HOG), noise), error_ns=MS // 2)) == {
        (Kind.waits, "hog"): 3 * MS,
        (Kind.unexplained, CLOCKS): 2 * MS,
        (Kind.guest_thread, "cron"): 5 * MS,
    }


def test_what_is_shorter_than_twice_the_error_is_charged_to_nobody_and_not_named() -> None:
    one = replace(scene(waiting_for(HOG)), error_ns=2 * MS)
    found = charges(explain(one, 0, 10 * MS))
    assert [(charge.kind, charge.who, charge.named) for charge in found] == [
        (Kind.unexplained, CLOCKS, False),
        (Kind.unexplained, "", False),
    ]


def moved(one: Scene, ns: int) -> Scene:
    """What really happened when the guest's clock was off by so much."""
    noise = {number: Spans.of(kept.start + ns, kept.end + ns, kept.what) for number, kept in one.guest.noise.items()}
    return replace(one, guest=replace(one.guest, noise=noise, interrupt_at=one.guest.interrupt_at + ns))


@given(scenes(), st.integers(0, 2000), st.integers(1, 1000), st.integers(1, 300), st.floats(-1, 1))
def test_wherever_within_the_error_the_window_lay_no_more_is_charged_than_was_so(
    one: Scene, start: int, length: int, error: int, share: float
) -> None:
    # A vCPU that was moved is a verdict about 20 ms, not about an instant.
    still = replace(one, host=replace(one.host, moves=ints([])), error_ns=error)
    said = told(still, start, start + length)
    off = round(error * share)
    true = told(replace(moved(still, off), error_ns=0), start + off, start + off + length)
    for (kind, who), ns in said.items():
        if kind is not Kind.unexplained:
            assert ns <= true.get((kind, who), 0), (kind, who)
