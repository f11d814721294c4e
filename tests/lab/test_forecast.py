"""Forecasts: exact where the queue is simple, in words where nobody can know, and calibrated by what was missed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evenkeel.lab.durations import KEPT, Durations, quantile
from evenkeel.lab.forecast import (
    CALIBRATED_FROM,
    Agent,
    Band,
    Calibration,
    Floor,
    Job,
    Live,
    covered,
    foretell,
)
from evenkeel.lab.forecast_power import Draw, Power
from evenkeel.lab.order import MINUTE_NS, Ready, Shares

NOW = 1_795_946_400 * 10**9


def _durations(**minutes: list[int]) -> Durations:
    made = Durations()
    for kind, list_ in minutes.items():
        for one in list_:
            made.learn(kind, "", one * MINUTE_NS)
    return made


def _job(number: int, **more: Any) -> Job:
    given: dict[str, Any] = {"group": 0, "kind": "build", "key": "", "person": "ann", "team": ""}
    given |= {"submission": number, "submission_kind": "wip", "submitted_ns": NOW - 100 + number}
    return Job(number, **(given | more))


def _live(jobs: list[Job], *, agents: tuple[Agent, ...] = (Agent("a", 1, 1),), **more: Any) -> Live:
    given: dict[str, Any] = {"shares": Shares(), "durations": _durations(build=[10, 10, 10], check=[1, 1, 1])}
    return Live(NOW, tuple(jobs), agents, **(given | more))


def _minutes(band: Band | None) -> tuple[float, float, float]:
    assert band is not None
    return tuple((at - NOW) / MINUTE_NS for at in (band.p10_ns, band.p50_ns, band.p90_ns))  # type: ignore[return-value]


def test_a_queue_of_equal_steps_on_one_agent() -> None:
    running = _job(1, started_ns=NOW - 4 * MINUTE_NS, agent="a")
    found = foretell(_live([running, _job(2), _job(3, person="ben"), _job(4, after=(3,), submission=3)]))
    assert _minutes(found.steps[1].end) == (6, 6, 6)
    assert _minutes(found.steps[2].start) == (6, 6, 6)
    # ben used nothing; ann's running build was charged to nobody here, so age decides.
    assert _minutes(found.steps[3].start) == (16, 16, 16)
    assert _minutes(found.steps[4].end) == (36, 36, 36)
    assert _minutes(found.submissions[3].end) == (36, 36, 36)
    assert [found.steps[n].ahead for n in (2, 3, 4)] == [0, 1, 2]
    assert [found.steps[n].people for n in (2, 3)] == [0, 1]


def test_the_forecast_knows_of_shares_and_urgency() -> None:
    shares = Shares()
    shares.charge("ann", "", 600 * MINUTE_NS, NOW)
    found = foretell(_live([_job(1), _job(2, person="ben"), _job(3, urgent=True)], shares=shares))
    assert sorted((1, 2, 3), key=lambda number: found.steps[number].ahead) == [3, 2, 1]
    assert _minutes(found.steps[1].start) == (20, 20, 20)
    assert shares.used("ann", "", NOW)[0] == 600 * MINUTE_NS, "looking ahead charges nobody"


def test_a_machine_is_waited_for() -> None:
    running = _job(1, group=1, started_ns=NOW, agent="a", machine="m1")
    agents = (Agent("a", 4, 3),)
    found = foretell(_live([running, _job(2, group=1), _job(3)], agents=agents, machines={"m1": 2}, wanting=2))
    assert _minutes(found.steps[2].start) == (10, 10, 10)
    assert _minutes(found.steps[3].start) == (0, 0, 0)


def _powered(left: float, *jobs: Job, **watts: float) -> Live:
    """Four machines, m1 with a running step that ends in ten minutes, and what each counts for at rack-a."""
    running = _job(1, group=1, started_ns=NOW, agent="a", machine="m1")
    names = ("m1", "m2", "m3", "m4")
    power = Power(
        {"rack-a": left}, {name: Draw("rack-a", watts.get(name, 300), watts.get(name, 300)) for name in names}
    )
    return _live([running, *jobs], agents=(Agent("a", 9, 2),), machines=dict.fromkeys(names, 2), wanting=2, power=power)


def _starts(live: Live, *numbers: int) -> list[float]:
    found = foretell(live)
    return [_minutes(found.steps[number].start)[1] for number in numbers]


@pytest.mark.parametrize(
    ("left", "starts"), [(900, [0, 0, 0]), (600, [0, 0, 10]), (599, [0, 10, 10]), (0, [10, 20, 30]), (-1, None)]
)
def test_a_machine_that_a_power_budget_keeps_back_is_had_when_enough_is_given_back(
    left: float, starts: list[float] | None
) -> None:
    """Three more steps, and three more machines, which nobody has."""
    live = _powered(left, *(_job(number, group=1) for number in (2, 3, 4)))
    if starts is not None:
        assert _starts(live, 2, 3, 4) == starts
    else:
        found = foretell(live)
        assert found.steps[2].start is None
        assert found.steps[2].unknown == "a power budget keeps back every machine that it could have"


def test_who_counts_for_less_than_is_left_is_had_at_once_and_another_site_is_free() -> None:
    live = _powered(100, _job(2, group=1), _job(3, group=1), m3=100, m4=1000)
    assert _starts(live, 2, 3) == [0, 10]
    free = replace(live, power=Power(live.power.left, {one: live.power.draws[one] for one in ("m1", "m2", "m3")}))
    assert _starts(free, 2, 3) == [0, 0], "m4 stands where there is no budget"


def test_a_machine_without_a_budget_is_as_good_as_one_with() -> None:
    """Two steps come after one that runs; the room is for one machine, and m2 stands where there is no budget."""
    live = _powered(0, *(_job(number, group=1, after=(1,)) for number in (2, 3)))
    draws = {one: live.power.draws[one] for one in ("m1", "m3")}
    found = replace(live, machines=dict.fromkeys(("m1", "m2", "m3"), 2), power=Power({"rack-a": 0}, draws))
    assert _starts(found, 2, 3) == [10, 10]


def test_one_that_slept_stays_on_when_its_step_has_ended() -> None:
    """It takes all when it wakes, and as idle when nobody has it: who needs that too waits for it to sleep again."""
    jobs = [_job(2, group=1), _job(3, group=1)]
    power = Power({"rack-a": 400}, {one: Draw("rack-a", 400, 300) for one in ("m1", "m2")})
    live = _live(jobs, agents=(Agent("a", 9, 6),), machines={"m1": 2, "m2": 2}, wanting=6, power=power)
    assert _starts(live, 2, 3) == [0, 10], "the second has the same machine again"
    other = replace(live, machines={"m1": 2, "m2": 4}, jobs=(jobs[0], replace(jobs[1], group=2)))
    assert foretell(other).steps[3].unknown == "a power budget keeps back every machine that it could have"
    # One that is being woken counts in full already, and gives back the same.
    waking = replace(other, power=Power({"rack-a": 0}, {"m1": Draw("rack-a", 0, 300), "m2": Draw("rack-a", 300, 300)}))
    assert _starts(waking, 2, 3) == [0, 10]


def test_what_never_begins_takes_no_forecast_of_others_with_it() -> None:
    jobs = [_job(2, group=1), _job(3, after=(2,), submission=2), _job(4)]
    found = foretell(replace(_powered(-1, *jobs), agents=(Agent("a", 9, 3),)))
    assert found.steps[2].unknown == "a power budget keeps back every machine that it could have"
    assert found.steps[3].unknown == f"it comes after a step for which {found.steps[2].unknown}"
    assert _minutes(found.steps[4].start) == (0, 0, 0)
    assert found.submissions[2].start is None and found.submissions[2].unknown


def test_sums_of_fractions_that_are_just_enough_are_enough() -> None:
    """Added in another order they differ in the last place, and such a step was in no forecast."""
    gives = [249.6, 240.9, 148.4, 55.6]
    for order in itertools.permutations(range(3)):
        running = [_job(n + 1, group=1, started_ns=NOW, agent="a", machine=f"m{n}") for n in order]
        draws = {f"m{n}": Draw("rack-a", watts, watts) for n, watts in enumerate(gives)}
        left = gives[3] - sum(gives[:3])
        jobs = [*running, _job(9, group=1)]
        live = _live(jobs, agents=(Agent("a", 9, 2),), wanting=2, power=Power({"rack-a": left}, draws))
        assert _starts(replace(live, machines={"m0": 0, "m1": 0, "m2": 0, "m3": 2}), 9) == [10], order


def test_a_machine_that_sleeps_is_waited_for_as_long_as_its_like_take_to_boot() -> None:
    agents, wakes = (Agent("a", 4, 3),), {"m2": tuple(minutes * MINUTE_NS for minutes in (2, 3, 3, 3, 8))}
    running = _job(1, group=1, started_ns=NOW, agent="a", machine="m1")
    known: dict[str, Any] = {"agents": agents, "machines": {"m1": 2, "m2": 2}, "wanting": 2}
    waits = [running, _job(2, group=1), _job(3, group=1)]
    found = foretell(_live(waits, **known, wakes=wakes))
    assert _minutes(found.steps[2].start)[1] == 3
    low, middle, high = _minutes(found.steps[3].start)
    assert (low, middle, high) == (10, 10, 10), "the other one is free before"
    awake = foretell(_live(waits, **known))
    assert _minutes(awake.steps[2].start) == (0, 0, 0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"agents": (Agent("a", 1, 2),), "wants": {0: ("arch:riscv64", "")}},
         "no agent of that kind is online: arch:riscv64"),
        ({"agents": (Agent("a", 1, 1, takes=False), Agent("b", 1, 2))}, "no agent is online"),
        ({"wanting": 1, "wants": {0: ("", "mem>=2TiB")}}, "no machine of the pool is like that: mem>=2TiB"),
        ({"wanting": 1, "withheld": 1},
         "no machine of the pool is free for steps, people hold them or they are broken"),
        ({"durations": Durations()}, "no step of the kind build has passed yet"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_is_said_in_words(more: dict[str, Any], words: str) -> None:
    jobs = [_job(1), _job(2, group=1, after=(1,), submission=1), _job(3, group=1)]
    found = foretell(_live(jobs, **({"agents": (Agent("a", 1, 3),)} | more)))
    assert found.steps[1].unknown == found.submissions[1].unknown == words
    assert found.steps[1].end is None and found.submissions[1].end is None
    if "durations" in more:
        assert found.steps[1].start is not None, "an agent is free, so it starts at once"
        assert found.steps[2].start is None
        assert found.steps[2].unknown == "it comes after a step of the kind build, of which none has passed yet"
        assert found.steps[3].unknown == "most of what comes before it is of kinds of which no step has passed yet"
    else:
        assert found.steps[1].start is None
        assert found.steps[2].unknown == f"it comes after a step for which {words}"
        assert found.steps[3].unknown == "", "what does not depend on it is foretold"


def test_a_step_that_runs_long_is_foretold_from_those_that_ran_longer() -> None:
    durations = _durations(build=[10] * 9 + [60])
    running = _job(1, started_ns=NOW - 20 * MINUTE_NS, agent="a")
    found = foretell(_live([running], durations=durations))
    assert _minutes(found.steps[1].end) == (40, 40, 40)


def test_the_same_state_gives_the_same_forecast() -> None:
    live = _live([_job(number) for number in range(20)], durations=_durations(build=[5, 10, 20, 40]))
    assert foretell(live) == foretell(live)
    assert foretell(live) != foretell(live, seed=1)


def test_a_floor_gives_each_machine_to_one_step_at_a_time() -> None:
    ready = Ready()
    assert ready.group("boot") == 0
    floor = Floor((Agent("a", 8, 1),), ready, lambda job: 10, machines={"m1": 1, "m2": 1}, wanting=1)
    for number in range(5):
        floor.enter(_job(number))
    assert [job.id for job in floor.start(NOW)] == [0, 1]
    floor.end(0, NOW + 10)
    assert [job.id for job in floor.start(NOW + 10)] == [2]
    assert {run[2] for run in floor.running.values()} == {"m1", "m2"}


def _forecasts(bias: float, number: int = 400) -> list[tuple[int, Band, int]]:
    """Made one an hour, for about an hour ahead; bands far too narrow, and what comes is late by ``bias``."""
    random = np.random.default_rng(7)
    made = []
    for index in range(number):
        at = NOW + index * 60 * MINUTE_NS
        middle = at + int(random.uniform(20, 100) * MINUTE_NS)
        spread = int((middle - at) * 0.05)
        came = at + int((middle - at) * float(random.lognormal(bias, 0.4)))
        made.append((at, Band(middle - spread, middle, middle + spread), came))
    return made


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_calibration_widens_a_band_until_it_covers(bias: float) -> None:
    calibration = Calibration()
    shown: list[tuple[Band, int]] = []
    drawn: list[tuple[Band, int]] = []
    for at, band, came in _forecasts(bias):
        shown.append((calibration.apply(at, band), came))
        drawn.append((band, came))
        calibration.learn(at, band, came)
    raw, calibrated = covered(drawn), covered(shown[100:])
    assert raw is not None and calibrated is not None
    assert raw < 0.2 and 0.75 <= calibrated <= 0.87


def test_calibration_waits_for_a_few_and_never_says_the_past() -> None:
    calibration = Calibration()
    at, band, came = _forecasts(0.0)[0]
    for _ in range(CALIBRATED_FROM - 1):
        calibration.learn(at, band, came)
    assert calibration.apply(at, band) == band
    calibration.learn(at, band, at)
    moved = calibration.apply(at, band)
    assert at <= moved.p10_ns <= moved.p50_ns == band.p50_ns <= moved.p90_ns


def test_nothing_covered_is_not_all_covered() -> None:
    assert covered([]) is None


def test_durations_are_the_latest_and_time_outs_are_learned_from_a_few() -> None:
    durations = _durations(build=[1] * 4)
    assert durations.timeout("build", "") is None
    durations.learn("build", "", MINUTE_NS)
    assert durations.timeout("build", "") == 3 * MINUTE_NS
    durations.learn("quick", "", 10)
    for _ in range(4):
        durations.learn("quick", "", 10)
    assert durations.timeout("quick", "") == MINUTE_NS, "not below a minute"
    for _ in range(KEPT):
        durations.learn("build", "", 9 * MINUTE_NS)
    assert durations.median("build", "") == 9 * MINUTE_NS, "the old compiler is forgotten"
    assert durations.median("build", "arm") == 9 * MINUTE_NS, "its kind is better than nothing"
    assert durations.timeout("build", "arm") is None, "but no reason to end it"
    assert durations.median("boot", "") is None
    twin = durations.copy()
    durations.learn("boot", "", 5)
    assert twin.median("boot", "") is None


def test_quantiles_lie_between_values() -> None:
    assert [quantile((0, 10, 20), share) for share in (0, 0.25, 0.5, 1)] == [0, 5, 10, 20]
