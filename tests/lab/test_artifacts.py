"""Contents by their hash, what is kept how long, and what a live attempt may rely on."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from evenkeel.documents.result import Artifact as Given
from evenkeel.documents.result import Place, Result, Times, Warned
from evenkeel.errors import WrongInput
from evenkeel.lab import artifacts, results, schema
from evenkeel.lab.actor import SERVICE, Actor, Forbidden, NotFound, with_roles
from evenkeel.lab.artifacts import collect, contents, fill_inputs
from evenkeel.lab.contents import Contents, NoSuchContent
from evenkeel.lab.lab import Lab
from evenkeel.lab.retention import DAY_NS, ArtifactRetention
from tests.lab.conftest import Clock

ANN, BOB, ADMIN = with_roles("ann", ["user"]), with_roles("bob", ["user"]), with_roles("root", ["admin"])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Work:
    """Submissions of one step, and attempts of it that ended so or so, straight into the tables."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def submission(self, state: str = "open", **spec: Any) -> int:
        row = {"name": "check", "kind": "check", "submitter": "ann", "spec": {}, "state": state, "submitted_ns": 0}
        number = self._insert(schema.submission, row)
        self.step(number, "build", **spec)
        return number

    def step(
        self, submission: int, name: str, branch: str = "main", inputs: Any = None, keep: int | None = None
    ) -> int:
        wish = {"path": "m", "keep": keep}
        step = {"kind": "build", "same": ["branch"], "artifacts": {"module": wish, "log": {"path": "log"}}}
        spec = {"step": step, "set": {"branch": branch}, "inputs": inputs or {}}
        row = {"submission_id": submission, "name": name, "kind": "build", "spec": spec, "state": "running"}
        return self._insert(schema.step, row)

    def attempt(self, submission: int, number: int = 1) -> int:
        step = self._value(select(schema.step.c.id).where(schema.step.c.submission_id == submission))
        row = {"step_id": step, "number": number, "agent": "a", "fencing": 1, "state": "running"}
        return self._insert(schema.attempt, {**row, "started_ns": self.lab.now()})

    def end(
        self, attempt: int, files: dict[str, bytes], state: str = "passed", *, bring: bool = True, **more: Any
    ) -> str:
        if bring:
            for data in files.values():
                artifacts.upload(self.lab, ANN, sha(data), [data])
        result = result_of(state, files, **more)

        def change(connection: Any) -> str:
            query = select(schema.step.c.spec).join(schema.attempt, schema.attempt.c.step_id == schema.step.c.id)
            spec = connection.scalar(query.where(schema.attempt.c.id == attempt))
            row = {"state": state, "ended_ns": self.lab.now(), "result": result.model_dump(mode="json")}
            connection.execute(update(schema.attempt).where(schema.attempt.c.id == attempt).values(row))
            return results.take(connection, self.lab, attempt, spec, row["result"])

        return self.lab.store.write(change)

    def close(self, submission: int, state: str = "passed") -> None:
        now = self.lab.now()

        def change(connection: Any) -> None:
            connection.execute(
                update(schema.submission).where(schema.submission.c.id == submission).values(state=state, ended_ns=now)
            )
            connection.execute(
                update(schema.step).where(schema.step.c.submission_id == submission).values(state=state, ended_ns=now)
            )

        self.lab.store.write(change)

    def done(self, files: dict[str, bytes], state: str = "passed", *, branch: str = "main", **more: Any) -> int:
        submission = self.submission(branch=branch, **({"keep": more.pop("keep")} if "keep" in more else {}))
        attempt = self.attempt(submission)
        assert self.end(attempt, files, state, **more) == ""
        self.close(submission, "passed" if state == "passed" else "failed")
        return attempt

    def _insert(self, table: Any, row: dict[str, Any]) -> int:
        return self.lab.store.write(lambda c: int(c.execute(insert(table).values(row)).inserted_primary_key[0]))  # type: ignore[index]

    def _value(self, query: Any) -> Any:
        with self.lab.store.read() as connection:
            return connection.scalar(query)


def result_of(state: str, files: dict[str, bytes], warnings: tuple[Warned, ...] = (), **more: Any) -> Result:
    given = tuple(Given(name=name, sha256=sha(data), size=len(data)) for name, data in sorted(files.items()))
    return Result.model_validate(
        {
            "step": "build",
            "step_sha256": "0" * 64,
            "state": state,
            "artifacts": given,
            "warnings": warnings,
            "times": Times(started_ns=0, ended_ns=10**9),
            "place": Place(host="here"),
            **more,
        }
    )


@pytest.fixture
def work(lab: Lab) -> Work:
    return Work(lab)


# -- contents ---------------------------------------------------------------------------------------------------------


def test_content_is_kept_by_its_hash_once(tmp_path: Path) -> None:
    store = Contents(tmp_path / "c")
    assert store.put([b"ab", b"c"]) == (sha(b"abc"), 3)
    assert store.put([b"abc"], sha256=sha(b"abc")) == (sha(b"abc"), 3)
    assert store.need(sha(b"abc")).read_bytes() == b"abc"
    assert len([path for path in (tmp_path / "c").rglob("*") if path.is_file() and path.name != ".lock"]) == 1


@pytest.mark.parametrize("bad", ["../../etc/passwd", "0" * 63, "G" * 64, "", "A" * 64])
def test_what_is_no_hash_never_becomes_a_path(tmp_path: Path, bad: str) -> None:
    with pytest.raises(WrongInput, match="no SHA-256"):
        Contents(tmp_path).need(bad)


def test_what_came_differently_or_not_whole_leaves_nothing(tmp_path: Path) -> None:
    store = Contents(tmp_path / "c")
    with pytest.raises(WrongInput, match="changed on the way"):
        store.put([b"abd"], sha256=sha(b"abc"))
    with pytest.raises(WrongInput, match="most that is kept"):
        store.put([b"abc"], most=2)

    def broken() -> Any:
        yield b"ab"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        store.put(broken())
    assert not store.has(sha(b"abc"))
    assert list((tmp_path / "c/incoming").iterdir()) == []


def test_removing_and_bringing_at_once_never_loses_what_was_acknowledged(tmp_path: Path) -> None:
    store = Contents(tmp_path / "c")
    data, lost, stop = b"x" * 1000, [], threading.Event()
    before = 2**62  # everything is old: only the lock and the look at the time inside it protect

    def bring() -> None:
        for _ in range(200):
            store.put([data])
        stop.set()

    thread = threading.Thread(target=bring)
    thread.start()
    removed = 0
    while not stop.is_set():
        removed += store.remove(sha(data), before_ns=before)
    thread.join()
    store.put([data])
    if not store.has(sha(data)):
        lost.append(1)
    assert not lost
    assert removed > 0  # they did meet
    # With the real rule, what was brought after the look is not removed.
    assert not store.remove(sha(data), before_ns=store.path(sha(data)).stat().st_mtime_ns)
    assert store.has(sha(data))


# -- only what was committed ----------------------------------------------------------------------------------------


def test_an_artifact_is_seen_when_its_attempt_has_ended_and_not_before(lab: Lab, work: Work) -> None:
    submission = work.submission()
    attempt = work.attempt(submission)
    artifacts.upload(lab, ANN, sha(b"m"), [b"m"])
    assert artifacts.of_attempt(lab, ANN, attempt) == ()
    assert work.end(attempt, {"module": b"m"}) == ""
    (found,) = artifacts.of_attempt(lab, ANN, attempt)
    assert (found.name, found.sha256, found.same, found.submission) == (
        "module", sha(b"m"), "build branch=main", submission,
    )  # fmt: skip


def test_a_result_whose_artifact_was_never_brought_is_refused(lab: Lab, work: Work) -> None:
    attempt = work.attempt(work.submission())
    assert "there is no content" in work.end(attempt, {"module": b"m"}, bring=False)
    assert artifacts.of_attempt(lab, ANN, attempt) == ()


def test_what_is_no_result_is_refused(lab: Lab, work: Work) -> None:
    attempt = work.attempt(work.submission())
    spec = {"step": {"kind": "build"}, "set": {}}
    said = lab.store.write(lambda connection: results.take(connection, lab, attempt, spec, {"kind": "Result"}))
    assert "cannot be kept" in said


# -- inputs -----------------------------------------------------------------------------------------------------------


def fill(lab: Lab, submission: int, **inputs: Any) -> dict[str, Any]:
    return lab.store.write(lambda connection: fill_inputs(connection, lab, submission, {"inputs": inputs}))


def test_inputs_are_made_of_what_steps_before_gave(lab: Lab, work: Work) -> None:
    submission = work.submission()
    work.end(work.attempt(submission), {"module": b"m"})
    with lab.store.engine.begin() as connection:
        connection.execute(update(schema.step).values(output={"n": 1}))
    made = fill(lab, submission, m={"artifact": "build/module"}, o={"output": "build"}, x={"artifact": "build/no"})
    assert made["m"]["content"] == sha(b"m") and made["m"]["artifact"] is None
    assert json.loads(made["o"]["json_text"]) == {"n": 1}
    assert made["x"] == {"artifact": "build/no"}


def test_the_last_attempt_counts(lab: Lab, work: Work) -> None:
    submission = work.submission()
    work.end(work.attempt(submission, 1), {"module": b"first"}, "failed")
    work.end(work.attempt(submission, 2), {"module": b"second"})
    assert fill(lab, submission, m={"artifact": "build/module"})["m"]["content"] == sha(b"second")


def test_the_baseline_is_the_last_good_one_of_the_same_branch(lab: Lab, work: Work, clock: Clock) -> None:
    submission = work.submission()
    wanted = {"baseline": "build/log", "optional": True}
    assert fill(lab, submission, b=wanted)["b"] == {"baseline": None, "optional": True}
    work.done({"log": b"old"})
    clock.move(1)
    work.done({"log": b"good"})
    clock.move(1)
    work.done({"log": b"bad"}, "failed")
    work.done({"log": b"other"}, branch="next")
    work.end(work.attempt(submission), {"log": b"own"})
    assert fill(lab, submission, b=wanted)["b"]["content"] == sha(b"good")


# -- keeping ----------------------------------------------------------------------------------------------------------


def names(lab: Lab) -> set[str]:
    with lab.store.read() as connection:
        return set(connection.scalars(select(schema.artifact.c.sha256)))


def test_the_policy(lab: Lab, work: Work, clock: Clock) -> None:
    kept = [work.done({"module": b"%d" % n}) for n in range(4)]
    work.done({"module": b"failed"}, "failed")
    work.done({"module": b"other"}, branch="next")
    work.done({"module": b"asked"}, branch="a", keep=40 * DAY_NS)
    work.done({"module": b"short"}, branch="b", keep=DAY_NS)
    pinned = artifacts.of_attempt(lab, ANN, kept[0])[0].id
    artifacts.pin(lab, ANN, pinned)
    policy = ArtifactRetention(last=2, passed=10 * DAY_NS, failed=30 * DAY_NS)

    assert collect(lab, ADMIN, policy).artifacts == 0
    clock.move(11 * 86400)
    done = collect(lab, ADMIN, policy)
    assert (done.artifacts, done.contents) == (2, 2)  # the second of main; what was to be kept for a day
    assert names(lab) == {sha(x) for x in (b"0", b"2", b"3", b"failed", b"other", b"asked")}
    assert contents(lab).has(sha(b"0")) and not contents(lab).has(sha(b"1"))
    clock.move(20 * 86400)
    collect(lab, ADMIN, policy)
    assert sha(b"failed") not in names(lab)
    assert sha(b"asked") in names(lab)
    artifacts.unpin(lab, ANN, pinned)
    clock.move(30 * 86400)
    collect(lab, ADMIN, policy)
    # The last two of main and the last of next stay for ever: new warnings are told against them.
    assert names(lab) == {sha(x) for x in (b"2", b"3", b"other")}


def test_one_content_of_two_artifacts_goes_with_the_last(lab: Lab, work: Work, clock: Clock) -> None:
    work.done({"module": b"same"}, "failed")
    clock.move(20 * 86400)
    work.done({"module": b"same"}, "failed")
    clock.move(15 * 86400)
    policy = ArtifactRetention(failed=30 * DAY_NS)
    assert collect(lab, ADMIN, policy).artifacts == 1
    assert contents(lab).has(sha(b"same"))
    clock.move(20 * 86400)
    assert collect(lab, ADMIN, policy).contents == 1
    assert not contents(lab).has(sha(b"same"))


def test_nothing_that_a_live_attempt_has_or_gave_is_removed(lab: Lab, work: Work, clock: Clock) -> None:
    # A policy that would take everything at once.
    greedy = ArtifactRetention(last=1, passed=0, failed=0, grace=0)
    old = work.done({"log": b"base"})
    clock.move(86400)
    submission = work.submission(inputs={"src": {"content": sha(b"sent")}})
    artifacts.upload(lab, ANN, sha(b"sent"), [b"sent"])
    live = work.attempt(submission)
    assert fill(lab, submission, b={"baseline": "build/log"})["b"]["content"] == sha(b"base")
    # Meanwhile another result becomes the last good one, so that nothing but the live attempt needs the first.
    clock.move(10)
    work.done({"log": b"newer"})
    artifacts.upload(lab, ANN, sha(b"made"), [b"made"])  # the live one's own, not committed yet
    clock.move(30 * 86400)  # it takes its time
    collect(lab, ADMIN, greedy)
    assert artifacts.of_attempt(lab, ANN, old) == ()
    for data in (b"base", b"sent", b"made"):
        assert contents(lab).has(sha(data)), data
    # It ends, and then they may go.  The check above can fail: this is the same call.
    work.end(live, {"module": b"made"}, "failed")
    work.close(submission, "failed")
    clock.move(2 * 86400)
    collect(lab, ADMIN, greedy)
    for data in (b"base", b"sent", b"made"):
        assert not contents(lab).has(sha(data)), data


def test_an_upload_that_nobody_names_is_left_alone_for_a_day(lab: Lab, clock: Clock) -> None:
    artifacts.upload(lab, ANN, sha(b"u"), [b"u"])
    clock.move(86000)
    assert collect(lab, ADMIN).contents == 0
    assert artifacts.missing(lab, ANN, [sha(b"u"), sha(b"v")]) == (sha(b"v"),)  # and is as good as new
    clock.move(86000)
    assert collect(lab, ADMIN).contents == 0
    clock.move(1000)
    assert collect(lab, ADMIN).contents == 1


def test_who_may(lab: Lab, work: Work) -> None:
    attempt = work.done({"module": b"m"})
    number = artifacts.of_attempt(lab, BOB, attempt)[0].id
    artifacts.pin(lab, ANN, number)
    with pytest.raises(Forbidden, match="belongs to ann"):
        artifacts.unpin(lab, BOB, number)
    assert artifacts.unpin(lab, ADMIN, number).pinned_by == ""
    viewer = with_roles("eve", ["viewer"])
    calls: list[Callable[[Actor], object]] = [
        lambda actor: artifacts.pin(lab, actor, number),
        lambda actor: artifacts.upload(lab, actor, sha(b""), []),
        lambda actor: collect(lab, actor),
    ]
    for call in calls:
        with pytest.raises(Forbidden):
            call(viewer)
    with pytest.raises(Forbidden):
        collect(lab, ANN)
    collect(lab, SERVICE)
    with pytest.raises(NotFound):
        artifacts.pin(lab, ANN, 999)
    with pytest.raises(NoSuchContent):
        contents(lab).need(sha(b"nobody"))


def test_pins_and_collections_are_in_the_log(lab: Lab, work: Work, clock: Clock) -> None:
    number = artifacts.of_attempt(lab, ANN, work.done({"module": b"m"}, "failed"))[0].id
    artifacts.pin(lab, ANN, number)
    artifacts.unpin(lab, ANN, number)
    clock.move(100 * 86400)
    collect(lab, ADMIN)
    with lab.store.read() as connection:
        found = connection.execute(select(schema.event.c.type, schema.event.c.actor)).all()
    assert [tuple(row) for row in found] == [
        ("artifact.pinned", "ann"),
        ("artifact.unpinned", "ann"),
        ("artifact.collected", "root"),
    ]


# -- results ----------------------------------------------------------------------------------------------------------


def test_results_are_found_and_compared_with_the_last_good_one(lab: Lab, work: Work, clock: Clock) -> None:
    def warned(name: str, times: int = 1) -> Warned:
        return Warned(signature=name * 16, tool="cc", file="a.c", text=name, times=times)

    first = work.done({"module": b"1"}, warnings=(warned("a"), warned("b")), output={"size": 1})
    clock.move(1)
    work.done({"module": b"x"}, "failed")
    now = work.done({"module": b"22"}, warnings=(warned("a", 3), warned("c")), output={"size": 2})
    assert [line.attempt for line in results.find(lab, ANN, state="passed").items] == [now, first]
    assert results.show(lab, ANN, now).before == first
    done = results.compared(lab, ANN, now)
    assert done.before.attempt == first
    found = done.comparison
    assert found.verdict == "worse"
    assert [(one.text, one.times) for one in found.warnings_new or ()] == [("a", 2), ("c", 1)]
    assert [one.text for one in found.warnings_gone or ()] == ["b"]
    assert [(one.key, one.before, one.now) for one in found.outputs] == [("size", 1, 2)]
    assert [(one.name, one.what, one.before, one.now) for one in found.artifacts] == [("module", "changed", 1, 2)]
    with pytest.raises(NotFound, match="no result before"):
        results.compared(lab, ANN, first)
    with lab.store.read() as connection:
        kept = connection.execute(select(schema.warning.c.text, schema.warning.c.times).where(
            schema.warning.c.attempt_id == now).order_by(schema.warning.c.text)).all()  # fmt: skip
    assert [tuple(row) for row in kept] == [("a", 3), ("c", 1)]
