"""Logs, results and events go when they are old, by the policy; what is needed stays, and what is gone is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from evenkeel.cli.root import run as evenkeel
from evenkeel.documents.result import Warned
from evenkeel.errors import WrongInput
from evenkeel.lab import (
    artifacts,
    client,
    events,
    machines,
    records,
    results,
    schema,
    search,
    settings,
    steps,
    webhooks,
)
from evenkeel.lab.actor import NotFound
from evenkeel.lab.client import Client
from evenkeel.lab.facets import index_of
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Edit
from evenkeel.lab.retention import DAY_NS, LogRetention, ResultRetention
from evenkeel.lab.settings import Settings
from tests.lab.conftest import Clock
from tests.lab.pool import ROOT, add
from tests.lab.test_artifacts import ADMIN, ANN, Work, work  # noqa: F401  a fixture

DAY = 86_400


def lab_with(lab: Lab, **chosen: Any) -> Lab:
    return replace(lab, settings=Settings(**chosen))


def with_logs(lab: Lab, attempts: list[int]) -> None:
    for number in attempts:
        lab.logs.write(number, 0, b"said %d\n" % number)


def logs(lab: Lab, attempts: list[int]) -> list[int]:
    return [number for number in attempts if lab.logs.path(number).exists()]


def test_logs_of_old_attempts_go_and_the_last_good_ones_stay(lab: Lab, work: Work, clock: Clock) -> None:  # noqa: F811
    lab = lab_with(lab, logs=LogRetention(last=2, passed=10 * DAY_NS, failed=30 * DAY_NS))
    passed = [work.done({"module": b"%d" % n}) for n in range(4)]
    failed = work.done({"module": b"f"}, "failed")
    other = work.done({"module": b"o"}, branch="next")
    running = work.attempt(work.submission())
    retried = work.submission()  # its first try failed, and it is open still
    first = work.attempt(retried)
    work.end(first, {}, "failed")
    everything = [*passed, failed, other, running, first]
    with_logs(lab, everything)
    pinned = artifacts.pin(lab, ANN, artifacts.of_attempt(lab, ANN, passed[0])[0].id)

    assert records.remove(lab) == {"logs": 0, "log_size": 0, "results": 0, "events": 0}
    clock.move(11 * DAY)
    assert records.remove(lab) == {"logs": 1, "log_size": len("said 1\n"), "results": 0, "events": 0}
    assert logs(lab, everything) == [one for one in everything if one != passed[1]]
    assert records.remove(lab)["logs"] == 0  # it is not looked for again and again
    artifacts.unpin(lab, ANN, pinned.id)
    clock.move(1000 * DAY)
    records.remove(lab)
    # For ever: the last two of main and the one of next, what runs, and what somebody may still try again.
    assert logs(lab, everything) == [*passed[2:], other, running, first]


def test_a_log_that_cannot_be_removed_is_tried_again_and_holds_up_no_other(
    lab: Lab, work: Work, clock: Clock, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    attempts = [work.done({}, "failed") for _ in range(2)]
    with_logs(lab, attempts)
    clock.move(200 * DAY)
    whole = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == f"{attempts[0]}.log":
            raise PermissionError(1, "Operation not permitted")
        whole(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert records.remove(lab)["logs"] == 1
    monkeypatch.undo()
    assert logs(lab, attempts) == [attempts[0]]
    assert steps.show(lab, ANN, step_of(lab, attempts[0])).attempts[0].log_removed_ns is None
    assert records.remove(lab)["logs"] == 1


def step_of(lab: Lab, attempt: int) -> int:
    with lab.store.read() as connection:
        found = connection.scalar(select(schema.attempt.c.step_id).where(schema.attempt.c.id == attempt))
    assert found is not None
    return int(found)


def test_the_page_and_the_api_say_that_a_log_was_removed(
    lab: Lab, work: Work, clock: Clock, ask: Callable[..., TestClient]  # noqa: F811
) -> None:  # fmt: skip
    gone, silent = work.done({}, "failed"), work.done({}, "failed")
    with_logs(lab, [gone])
    page_of = ask("ann")
    assert "said" in page_of.get(f"/steps/{step_of(lab, gone)}").text
    assert "It said nothing" in page_of.get(f"/steps/{step_of(lab, silent)}").text
    clock.move(200 * DAY)
    artifacts.collect(lab, ADMIN)
    page = page_of.get(f"/steps/{step_of(lab, gone)}")
    assert page.status_code == 200 and "It was removed on" in page.text and "It said nothing" not in page.text
    found = page_of.get(f"/api/v1/steps/{step_of(lab, gone)}").json()["attempts"][0]
    assert (found["log_size"], found["log_removed_ns"]) == (0, lab.now())
    answer = page_of.get(f"/api/v1/attempts/{gone}/log")
    assert (answer.status_code, answer.content, answer.headers["Lab-Log-More"]) == (200, b"", "no")


def test_the_command_says_that_a_log_was_removed(
    lab: Lab,
    work: Work,  # noqa: F811
    clock: Clock,
    ask: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told() -> tuple[str, str]:
        made = Client("http://lab")
        made.http = ask("ann")
        monkeypatch.setattr(client, "connect", lambda at=None: made)
        assert evenkeel(["lab", "log", str(submission), "build"]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    attempt = work.done({}, "failed")
    submission = steps.show(lab, ANN, step_of(lab, attempt)).submission
    assert "step build printed nothing" in told()[1]
    with_logs(lab, [attempt])
    assert told()[0] == f"said {attempt}\n"
    clock.move(200 * DAY)
    records.remove(lab)
    out, err = told()
    assert (out, "the log of step build was removed on 2027-06-17 10:00 UTC" in err) == ("", True), err


def test_results_go_with_their_warnings_and_what_is_left_says_so(
    lab: Lab, work: Work, clock: Clock, ask: Callable[..., TestClient]  # noqa: F811
) -> None:  # fmt: skip
    lab = lab_with(lab, results=ResultRetention(last=1, passed=10 * DAY_NS, failed=30 * DAY_NS))
    warned = Warned(signature="a" * 16, tool="cc", file="a.c", text="a", times=1)
    old = work.done({}, warnings=(warned,))
    clock.move(1)
    good = work.done({}, warnings=(warned,))
    clock.move(11 * DAY)
    assert records.remove(lab)["results"] == 1
    shown = results.show(lab, ANN, old)
    assert (shown.state, shown.result, shown.removed_ns) == ("passed", None, lab.now())
    kept = results.show(lab, ANN, good)
    assert kept.result is not None and kept.before is None  # not with one that is gone
    with lab.store.read() as connection:
        assert list(connection.scalars(select(schema.warning.c.attempt_id))) == [good]
    with pytest.raises(NotFound, match=f"result of attempt {old} was removed on 2026-"):
        results.compared(lab, ANN, old)
    with pytest.raises(NotFound, match="older than the lab keeps"):
        results.compared(lab, ANN, good, old)
    page = ask("ann").get(f"/results/{old}")
    assert page.status_code == 200 and "Its result was removed on" in page.text
    assert "Result and files" in ask("ann").get(f"/steps/{step_of(lab, old)}").text


# -- events -----------------------------------------------------------------------------------------------------------


def seqs(lab: Lab) -> list[int]:
    with lab.store.read() as connection:
        return list(connection.scalars(select(schema.event.c.seq).order_by(schema.event.c.seq)))


def say(lab: Lab, type_: str = "login", times: int = 1) -> int:
    return max(lab.store.write(lambda c: lab.store.event(c, "ann", type_, "principal", "ann")) for _ in range(times))


def test_old_events_go_the_oldest_first_and_numbers_go_on(
    lab: Lab, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_AT_ONCE", 3)  # several changes
    last = say(lab, times=10)
    clock.move(399 * DAY)
    young = say(lab)
    assert records.remove(lab)["events"] == 0
    clock.move(2 * DAY)
    assert records.remove(lab)["events"] == last
    assert seqs(lab) == [young]
    clock.move(500 * DAY)
    assert records.remove(lab)["events"] == 0  # the newest stays, so that no number is given twice
    assert say(lab) == young + 1


def test_an_event_of_a_clock_that_was_ahead_hides_nothing_that_comes_after_it(lab: Lab, clock: Clock) -> None:
    say(lab)
    clock.jump(1000 * DAY)
    ahead = say(lab)
    clock.jump(-1000 * DAY)
    say(lab)
    clock.move(401 * DAY)
    say(lab)
    records.remove(lab)
    assert seqs(lab) == [ahead, ahead + 1, ahead + 2]  # no gap in the middle, which no reader could see


def test_what_a_webhook_was_not_told_yet_stays_unless_it_is_off(lab: Lab, clock: Clock) -> None:
    made = webhooks.add(lab, ADMIN, "http://127.0.0.1:9/", ["login"]).webhook
    missed = say(lab)
    clock.move(401 * DAY)
    say(lab)
    records.remove(lab)
    assert seqs(lab)[0] == missed == made.after + 1
    with lab.store.engine.begin() as connection:
        connection.execute(update(schema.webhook).values(off=True))
    records.remove(lab)
    assert missed not in seqs(lab)
    assert webhooks.resume(lab, ADMIN, made.id).off is False  # and it goes on with what there is


def test_a_reader_of_events_is_told_what_it_missed(
    lab: Lab, clock: Clock, ask: Callable[..., TestClient]
) -> None:  # fmt: skip
    say(lab, times=5)
    cursor = ask("ann").get("/api/v1/log", params={"limit": 2}).json()["next"]
    clock.move(401 * DAY)
    young = say(lab)
    records.remove(lab)
    lab.stopping.set()  # the stream ends after what it begins with
    answer = ask("ann").get("/api/v1/events", params={"after": 1})
    assert f"event: log.removed\ndata: {json.dumps({'to': young - 1})}\n\n" in answer.text
    assert "log.removed" not in ask("ann").get("/api/v1/events", params={"after": young - 1}).text
    assert "log.removed" not in ask("ann").get("/api/v1/events").text
    assert ask("ann").get("/api/v1/log", params={"after": cursor}).json() == {"items": [], "next": None}
    page = ask("ann").get("/log")
    assert "what is older than 400 d is removed" in page.text


def test_the_index_of_machines_reads_anew_once_what_it_can_no_longer_follow(
    lab: Lab, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lab, "host1")

    def sites() -> list[str]:
        return [
            one.value for facet in search.find(lab, ANN, "site:*").facets if facet.key == "site" for one in facet.values
        ]

    assert sites() == []
    machines.edit(lab, ROOT, "host1", Edit(site="prg"))
    clock.move(401 * DAY)
    say(lab)
    assert records.remove(lab)["events"] > 0  # what told of the change is gone, and nobody searched meanwhile
    assert sites() == ["prg"]
    index, read = index_of(lab), []
    monkeypatch.setattr(index, "_read", lambda *given: read.append(given))
    assert (sites(), read) == (["prg"], [])


def test_a_collection_is_told_but_does_not_keep_itself_going(lab: Lab, work: Work, clock: Clock) -> None:  # noqa: F811
    with_logs(lab, [work.done({}, "failed")])
    say(lab, times=5)
    clock.move(401 * DAY)
    told = artifacts.collect(lab, ADMIN)
    assert (told.logs, told.log_size, told.results, told.events) == (1, 7, 1, 4)
    assert events.events(lab, ANN, type_="artifact.collected").items[0].data["logs"] == 1
    for _ in range(3):
        clock.move(401 * DAY)
        artifacts.collect(lab, ADMIN)
    with lab.store.read() as connection:
        number = connection.scalar(select(func.count()).select_from(schema.event))
    assert number == 1


@pytest.mark.parametrize("text", ["logs: {last: 0}", "events: 1h", "logs: {passed: -1d}", "logs: {grace: 1d}"])
def test_settings_that_would_remove_what_is_needed_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    with pytest.raises(WrongInput):
        settings.read(file)
    file.write_text("logs: {last: 3, passed: 7d}\nresults: {failed: 90d}\nevents: 90d\n")
    chosen = settings.read(file)
    assert (chosen.logs.passed, chosen.logs.failed) == (7 * DAY_NS, 180 * DAY_NS)
    assert (chosen.results.failed, chosen.events) == (90 * DAY_NS, 90 * DAY_NS)
