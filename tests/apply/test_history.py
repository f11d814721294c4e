"""The history of what guests hold: when a line is written, torn lines, several writers, clocks that are set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenkeel.apply import history
from evenkeel.apply.history import Moment, beside, note_applied, note_rolled_back, read_history, seconds_of
from evenkeel.apply.report import ApplyReport, StepReport
from evenkeel.cli import main
from evenkeel.documents.history import HistoryEntry
from evenkeel.documents.plan import HostPlan, Plan
from evenkeel.documents.site import PlaceWish
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.plan import make_plan
from evenkeel.plan.fleet.usage import Dated, straighten, usage
from tests.apply.tree_host import RUNTIME_SETTINGS, TreeHost
from tests.apply.tree_host import make_plan as tree_plan
from tests.plan.factories import GIB, guest, make_facts, make_site

DAY = 86_400.0
START = 1_790_000_000.0  # 2026-09-21


def host_plan(**guests: Any) -> HostPlan:
    site = make_site(
        guests
        or {
            "plc": guest("realtime", memory=GIB // 2, place=PlaceWish(owner="line1")),
            "hmi": guest("flexible", vcpus=1),
        }
    )
    return make_plan(site, {"cell": make_facts(cores=5)}).hosts[0]


def report(outcome: Any = "applied", *left: str) -> ApplyReport:
    steps = tuple(StepReport(name=name, title="", phase="guest", disturbance="drain", outcome="left") for name in left)
    return ApplyReport(host="cell", address="virtual:plc", plan_sha256="0" * 64, outcome=outcome, steps=steps)


def at(days: float, *, boot: str = "b1", uptime_s: float | None = None, clock: float = 0.0) -> Any:
    """A moment ``days`` after the start.  ``clock``: seconds by which the wall clock is wrong."""
    return lambda: Moment(START + days * DAY + clock, boot, 1000 + days * DAY if uptime_s is None else uptime_s)


def entries(file: Path) -> list[HistoryEntry]:
    found, remarks = read_history(file)
    assert remarks == []
    return found


def test_a_line_says_what_each_guest_holds(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    assert note_applied(file, host_plan(), report(), at(0))
    (entry,) = entries(file)
    assert (entry.at, entry.host, entry.address) == ("2026-09-21T14:13:20.000Z", "cell", "virtual:plc")
    hmi, plc = entry.guests
    assert (plc.owner, plc.vcpus, plc.cores, plc.cpus, plc.nodes) == ("line1", 2, 2, 4, (1,))
    assert (plc.memory_bytes, plc.huge_bytes, plc.functions) == (GIB // 2, GIB // 2, ())
    assert (hmi.owner, hmi.vcpus, hmi.cores, hmi.cpus, hmi.huge_bytes) == (None, 1, 0, 0, 0)


def test_a_line_is_written_when_something_changed_and_was_applied(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    for outcome in ("dry_run", "reboot_pending"):
        assert not note_applied(file, host_plan(), report(outcome), at(0))
    assert not file.exists()
    assert note_applied(file, host_plan(), report("unchanged"), at(0)), "it held it before the history began"
    assert not note_applied(file, host_plan(), report(), at(1)), "the same"
    larger = host_plan(plc=guest("realtime", vcpus=3, memory=GIB // 2, place=PlaceWish(owner="line1")))
    assert note_applied(file, larger, report(), at(2))
    assert [len(entry.guests) for entry in entries(file)] == [2, 1]
    assert note_rolled_back(file, "virtual:plc", at(3))
    assert not note_rolled_back(file, "virtual:plc", at(4)) and not note_rolled_back(file, "virtual:other", at(4))
    assert not note_rolled_back(tmp_path / "none", "virtual:plc", at(4)) and not (tmp_path / "none").exists()
    last = entries(file)[-1]
    assert (last.event, last.host, last.guests) == ("rolled back", "cell", ())


def test_a_guest_that_runs_with_its_old_definition_holds_what_it_held(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(0))
    larger = host_plan(plc=guest("realtime", vcpus=3, memory=GIB // 2), new=guest("flexible", vcpus=1))
    assert note_applied(file, larger, report("applied", "G-15:plc"), at(1))
    assert {one.name: one.vcpus for one in entries(file)[-1].guests} == {"new": 1, "plc": 2}
    assert note_applied(file, larger, report(), at(2))
    assert {one.name: one.vcpus for one in entries(file)[-1].guests} == {"new": 1, "plc": 3}


# -- torn lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 40, -2])
def test_a_torn_last_line_is_skipped_and_closed_off(tmp_path: Path, length: int) -> None:
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(0))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:length])
    found, remarks = read_history(file)
    assert len(found) == 1
    assert remarks == [f"{file}:2: the line has no end, so it was never written in full"]
    assert note_rolled_back(file, "virtual:plc", at(1))
    found, remarks = read_history(file)
    assert [entry.event for entry in found] == ["applied", "rolled back"]
    assert remarks == [f"{file}:2: not an entry"]


@pytest.mark.parametrize("text", ["{}", "[]", "null", "\x00" * 30, "[" * 5000, '{"at": "yesterday"}', "é"])
def test_a_line_that_is_none_costs_no_other(tmp_path: Path, text: str) -> None:
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(0))
    line = file.read_bytes()
    file.write_bytes(text.encode("latin-1") + b"\n\n" + line)
    found, remarks = read_history(file)
    assert len(found) == 1 and remarks == [f"{file}:1: not an entry"]


def test_a_time_without_a_zone_is_no_time(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(0))
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "at": "2026-09-21T12:00:00"}) + "\n")
    assert read_history(file)[0] == []


# -- several writers --------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from evenkeel.apply.history import note_applied, note_rolled_back
from evenkeel.apply.report import ApplyReport
from evenkeel.documents.plan import Plan
plan, file, name = Plan.from_json(Path(sys.argv[1]).read_text(), file=""), Path(sys.argv[2]), sys.argv[3]
host = plan.hosts[0].model_copy(update={"name": name, "address": "virtual:" + name})
report = ApplyReport(host=name, address=host.address, plan_sha256="0" * 64, outcome="applied", steps=())
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    assert note_applied(file, host, report)
    assert note_rolled_back(file, host.address)
"""


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    file, plan = tmp_path / "h.jsonl", tmp_path / "plan.json"
    plan.write_text(Plan(site_sha256="0" * 64, hosts=(host_plan(),)).to_json())
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(plan), str(file), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in ("a", "b", "c")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    found = entries(file)
    assert len(found) == 3 * 40
    for name in ("a", "b", "c"):
        assert [entry.event for entry in found if entry.host == name] == ["applied", "rolled back"] * 20
    times = [seconds_of(entry) for entry in found]
    assert times == sorted(times), "the time is taken under the lock"


def test_a_lock_that_nobody_gives_back_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "h.jsonl"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        monkeypatch.setattr(history, "PATIENCE_S", 0.2)
        with pytest.raises(EvenkeelError, match="another program holds its lock"):
            note_applied(file, host_plan(), report(), at(0))
    finally:
        holder.communicate()
    assert note_applied(file, host_plan(), report(), at(0))


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(EvenkeelError, match="cannot write the history"):
        note_applied(tmp_path / "no" / "h.jsonl", host_plan(), report(), at(0))
    with pytest.raises(WrongInput, match="there is no history"):
        read_history(tmp_path / "h.jsonl")
    with pytest.raises(WrongInput, match="cannot read"):
        read_history(tmp_path)


# -- clocks -----------------------------------------------------------------------------------------------------------


def hours(file: Path, days: float) -> tuple[dict[str, float], list[str]]:
    """Core-hours of each owner from the start to ``days`` later."""
    dated, remarks = straighten([Dated(seconds_of(one), one) for one in entries(file)], START + days * DAY)
    return {one.owner: one.core for one in usage(dated, [START, START + days * DAY])}, remarks


@pytest.mark.parametrize("step_s", [7200.0, -7200.0, 30 * DAY])
def test_a_clock_that_is_set_between_two_lines(tmp_path: Path, step_s: float) -> None:
    """It was wrong by ``step_s`` when the guest came, and right when it went: one day of two cores all the same."""
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(1, clock=step_s))
    note_rolled_back(file, "virtual:plc", at(2))
    found, remarks = hours(file, 10)
    assert found["line1"] == pytest.approx(48.0)
    assert len(remarks) == 1 and "the clock was set after it" in remarks[0]


def test_a_clock_that_drifts_is_no_clock_that_is_set(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(1, clock=20.0))
    note_rolled_back(file, "virtual:plc", at(2))
    assert hours(file, 10)[1] == []


def test_a_machine_that_starts_with_its_clock_at_1970(tmp_path: Path) -> None:
    """Its lines count from the line before: nothing is accounted twice, and nothing for less than no time."""
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(1))
    note_rolled_back(file, "virtual:plc", at(-20_000, boot="b2", uptime_s=60))
    note_applied(file, host_plan(), report(), at(3, boot="b3", uptime_s=60))
    found, remarks = hours(file, 4)
    assert found["line1"] == pytest.approx(48.0), "from day 3 to day 4"
    assert len(remarks) == 1 and "dated before the entry in front of it" in remarks[0]


def test_a_line_from_the_future_counts_from_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    note_applied(file, host_plan(), report(), at(9999, boot="b0", uptime_s=60))
    note_rolled_back(file, "virtual:plc", at(1))
    note_applied(file, host_plan(), report(), at(2))
    found, remarks = hours(file, 4)
    assert found["line1"] == pytest.approx(96.0)
    assert len(remarks) == 1 and "dated in the future" in remarks[0]


# -- the verbs --------------------------------------------------------------------------------------------------------


def test_apply_and_rollback_keep_the_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = TreeHost(tmp_path)
    monkeypatch.setattr("evenkeel.machines.address.resolve", lambda address: host)
    noted: list[tuple[Path, str]] = []
    monkeypatch.setattr(history, "note_applied", lambda file, one, report: noted.append((file, report.outcome)))
    monkeypatch.setattr(history, "note_rolled_back", lambda file, address: noted.append((file, address)))
    plan = tmp_path / "plan.json"
    plan.write_text(tree_plan(host, *(one for one in RUNTIME_SETTINGS if one.id != "R-RT-1")).to_json())
    assert main(["apply", str(plan)]) == 0
    assert main(["apply", str(plan), "--history", str(tmp_path / "other")]) == 0
    assert main(["rollback", str(plan)]) == 0
    assert [file for file, _ in noted] == [tmp_path / history.NAME, tmp_path / "other", tmp_path / history.NAME]
    capsys.readouterr()

    def full(*_: Any) -> None:
        raise EvenkeelError("cannot write the history x: No space left on device")

    monkeypatch.setattr(history, "note_applied", full)
    assert main(["apply", str(plan)]) == 0, "the host is as planned"
    assert "No space left on device; what owners hold since now is not accounted" in capsys.readouterr().err


def test_where_the_history_is(tmp_path: Path) -> None:
    assert beside(str(tmp_path)) == tmp_path / history.NAME
    assert beside(str(tmp_path / "site.yaml")) == tmp_path / history.NAME
    assert beside("-") == Path(history.NAME)


def test_what_owners_held(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    site = tmp_path / "site.yaml"
    site.write_text("version: 1\nhosts: {cell: {address: 'virtual:plc'}}\n")
    file = tmp_path / history.NAME
    note_applied(file, host_plan(), report(), at(0))
    note_rolled_back(file, "virtual:plc", at(1.5))
    asked = ["capacity", str(site), "--owners", "--since", "2026-09-21", "--until", "2026-09-24"]
    assert main([*asked, "--json"]) == 0
    (nobody, line1) = json.loads(capsys.readouterr().out)
    assert (line1["owner"], line1["from"], line1["to"]) == ("line1", "2026-09-21", "2026-09-24")
    assert (line1["core_hours"], line1["cpu_hours"], line1["node_hours"]) == (72.0, 144.0, 36.0)
    assert (line1["memory_gib_hours"], line1["huge_gib_hours"], line1["function_hours"]) == (18.0, 18.0, 0.0)
    assert (nobody["owner"], nobody["vcpu_hours"], nobody["core_hours"]) == ("-", 36.0, 0.0)
    assert main([*asked, "--by", "day", "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("from,to,owner,guest_hours,vcpu_hours,core_hours,")
    assert [line.split(",")[0] for line in lines[1:]] == ["2026-09-21"] * 2 + ["2026-09-22"] * 2 + ["2026-09-23"] * 2
    assert sum(float(line.split(",")[5]) for line in lines[1:]) == pytest.approx(72.0)
    assert main(asked) == 0
    said = capsys.readouterr()
    assert "72.0" in said.out and "the history begins 2026-09-21 14:13 UTC" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--since", "yesterday"], "--since yesterday is no time"),
        (["--since", "2026-13-01"], "is no time"),
        (["--since", "2999-01-01"], "nothing is between"),
        (["--since", "2026-09-01", "--until", "2026-08-01"], "nothing is between --since 2026-09-01 and --until"),
        (["--until", "2026-08-01"], "are for --owners --since TIME"),
        (["--by", "day"], "are for --owners --since TIME"),
        (["--since", "1d", "--facts", "x"], "reads the history alone"),
        (["--since", "1d"], "there is no history"),
        (["--since", "1d", "--json", "--csv"], "--csv is for --owners, without --json"),
        (["--since", "1900-01-01", "--by", "day"], "more days than a table can show"),
    ],
)
def test_wrong_questions(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    site = tmp_path / "site.yaml"
    site.write_text("version: 1\nhosts: {cell: {address: 'virtual:plc'}}\n")
    assert main(["capacity", str(site), "--owners", *words]) == 2
    assert told in capsys.readouterr().err
