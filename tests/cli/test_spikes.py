"""The verb `evenkeel spikes` on a kept recording, and what it refuses."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tests.measure.explain.constructed import MS, UNTOLD, VCPU, recording

from evenkeel.cli import main
from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.documents.explanation import Explanation, Kind
from evenkeel.measure.explain.recording import Raw, from_bytes, to_bytes
from evenkeel.report.timeline import render_explanation


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "kept.zip"
    file.write_bytes(to_bytes(recording()))
    return file


def test_a_kept_recording_is_explained(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, drawn, saved = (tmp_path / name for name in ("page.html", "plc.pftrace", "explanation.json"))
    files = ["--report", str(page), "--pftrace", str(drawn), "-o", str(saved)]
    assert main(["spikes", "plan.json", "plc", "--from", str(kept), "--over", "1ms", *files, "--json"]) == 0
    found = Explanation.model_validate(json.loads(capsys.readouterr().out))
    assert Explanation.from_json(saved.read_text(), file="x") == found
    assert (found.samples, found.max_latency_ns, len(found.spikes)) == (2, 8 * MS, 1)
    (spike,) = found.spikes
    assert [(charge.kind, charge.who, charge.ns) for charge in spike.charges] == [
        (Kind.waits, "hog", 6 * MS),
        (Kind.unexplained, "", 2 * MS),
    ]
    assert spike.at_ns == 27 * MS and spike.explained_ns == 6 * MS
    assert [one.rule for one in found.causes[0].allowed] == ["G-3", "C-1"]
    assert "vCPU waited for hog on the host" in page.read_text()
    for rule in ("G-3", "C-1"):
        assert f'href="#rule-{rule}"' in page.read_text() and f'id="rule-{rule}"' in page.read_text()
    assert b"hog" in drawn.read_bytes() and b"8000 us late" in drawn.read_bytes()


def test_all_samples_over_time_late_or_not(kept: Path, tmp_path: Path) -> None:
    saved, drawn = tmp_path / "explanation.json", tmp_path / "time.svg"
    files = ["-o", str(saved), "--heat-map", str(drawn)]
    assert main(["spikes", "-", "plc", "--from", str(kept), "--over", "1ms", *files]) == 0
    found = Explanation.from_json(saved.read_text(), file=saved.name)
    (only,) = found.courses[1].slices
    # The late one began 8 ms before 27 ms, the other is 20 us: both in the first eighth of a second.
    assert only.samples == found.samples == 2 and only.max_ns == found.max_latency_ns == 8 * MS
    assert found.courses_from_ns == 0
    picture = drawn.read_text()
    assert "guest plc, vCPU 1, timerlat" in picture and "explained from 1 ms" in picture and EMULATION_NOTE in picture


def test_explanations_of_version_1_are_still_read(kept: Path, tmp_path: Path) -> None:
    saved = tmp_path / "explanation.json"
    assert main(["spikes", "-", "plc", "--from", str(kept), "-o", str(saved)]) == 0
    old = json.loads(saved.read_text())
    del old["courses"], old["courses_from_ns"]
    found = Explanation.from_json(json.dumps(old | {"version": 1}), file="old.json")
    assert found.version == 4 and found.courses == {}
    assert "Over time" not in render_explanation(found)


def test_it_is_one_of_the_questions_of_trace(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan.json", "plc", "--from", str(kept), "--over", "1ms", "--json"]
    assert main(["spikes", *words]) == 0
    said = capsys.readouterr().out
    assert main(["trace", "explain", *words]) == 0
    assert capsys.readouterr().out == said


def test_what_is_printed(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spikes", "plan.json", "plc", "--from", str(kept), "--over", "1ms"]) == 0
    said = capsys.readouterr().out
    for part in ("1 of 2 samples later than 1 ms", "off by 0 ns at most", "vCPU waited for hog", "75% of the time"):
        assert part in said, part
    assert main(["spikes", "plan.json", "plc", "--from", str(kept), "--over", "1s"]) == 0
    assert "0 of 2 samples" in capsys.readouterr().out


def test_what_was_lost_and_what_recording_took_is_always_said(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ["spikes", "plan.json", "plc", "--from", str(kept), "--over", "1ms", "--report", str(page)]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "events lost: host 0, guest 0, machine under the host not recorded" in said
    # A recording of an earlier version does not know what it took.
    assert "recorded of the host: 0.1 s, 0.0 MB; what the recorder took was not measured" in said
    assert "full" not in said
    known = recording()
    host, guest = (replace(raw, cost=cost) for raw, cost in zip((known.host, known.guest), COSTS, strict=True))
    kept.write_bytes(to_bytes(replace(known, host=host, guest=guest)))
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("recorder took 200 µs, 0.20% of a CPU", "recorder took 2 ms, 2.00% of a CPU; timerlat 10.00%"):
        assert part in said and part in page.read_text(), part
    assert "host 0, guest 0, machine under the host not recorded" in page.read_text()


COSTS = (
    {"cpu_ns": MS // 5, "over_ns": 100 * MS},
    {"cpu_ns": 2 * MS, "over_ns": 100 * MS, "timerlat_ns": 10 * MS},
)


@pytest.mark.parametrize("side", ["host", "guest", "below"])
def test_a_recording_that_ended_early_says_so(
    side: str, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    early = replace(recording(), seconds=3600.0, full=(side,))
    if side == "below":
        early = replace(early, below=early.host, below_threads={"3": VCPU, "timer": 1}, trips=((6, 7, 8),))
    kept.write_bytes(to_bytes(early))
    words = ["spikes", "plan.json", "plc", "--from", str(kept), "--over", "1ms", "--report", str(page)]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    name = "machine under the host" if side == "below" else side
    # The last sample of the guest is at 47 ms; the host ended at 100 ms.
    ended = 0.0 if side == "guest" else 0.1
    for part in (f"recording of the {name} was full and ended at {ended:.1f} s of 3600 s", "for a shorter time"):
        assert part in said and part in page.read_text(), part
    assert main([*words, "--json"]) == 0
    found = Explanation.model_validate(json.loads(capsys.readouterr().out))
    assert [name for name, one in found.recorders.items() if one.full] == [side]
    assert (found.asked_seconds, found.seconds) == (3600, 0.047 if side == "guest" else 0.1)


def test_a_recording_survives_saving() -> None:
    assert from_bytes(to_bytes(recording()), "x") == recording()
    known = replace(recording(trip_ns=MS), siblings={"3": (7,), "7": (3,)})
    assert from_bytes(to_bytes(known), "x") == known
    assert to_bytes(from_bytes(to_bytes(recording()), "x")) == to_bytes(recording())


@pytest.mark.parametrize("damage", ["not a zip", "cut", "another"])
def test_what_is_no_recording_is_wrong_input(
    damage: str, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.zip"
    data = kept.read_bytes()
    file.write_bytes(b"hello" if damage == "not a zip" else data[: len(data) // 2])
    if damage == "another":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("about.json", '{"kind": "evenkeel recording 9"}')
    assert main(["spikes", "plan.json", "plc", "--from", str(file)]) == 2
    assert "no recording of host and guest" in capsys.readouterr().err


def test_a_recording_of_another_guest_is_not_explained(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spikes", "plan.json", "hmi", "--from", str(kept)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "a recording of guest plc, not of hmi" in said.err
    assert f"spikes plan.json plc --from {kept}" in " ".join(said.err.split())


def test_a_clock_that_nobody_knows_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kept.zip"
    file.write_bytes(to_bytes(replace(recording(), told=UNTOLD)))
    assert main(["spikes", "plan.json", "plc", "--from", str(file)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no clock offset" in said and "no round trip reached its agent" in said and "debugfs" in said


@pytest.mark.parametrize("trip_ns", [MS // 5, 6 * MS])
def test_round_trips_bind_a_clock_that_kvm_does_not_tell_and_their_error_is_heeded(
    trip_ns: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hog of 6 ms: by a trip that took as long as that nothing is certain, and it is charged with nothing."""
    file, page = tmp_path / "kept.zip", tmp_path / "page.html"
    file.write_bytes(to_bytes(recording(trip_ns=trip_ns)))
    words = ["spikes", "plan.json", "plc", "--from", str(file), "--over", "1ms", "--report", str(page)]
    assert main([*words, "--json"]) == 0
    found = Explanation.model_validate(json.loads(capsys.readouterr().out))
    error = found.alignment.error_ns
    assert found.alignment.method == "round trips" and trip_ns // 2 <= error <= trip_ns
    (spike,) = found.spikes
    charges = {(charge.kind, charge.who): charge.ns for charge in spike.charges}
    # What is as near to its begin or end as the error is nobody's.
    charged_ns = charges.get((Kind.waits, "hog"), 0)
    assert charged_ns == max(0, 6 * MS - 2 * error) and bool(charged_ns) == (trip_ns < MS)
    assert bool(charged_ns) == any(cause.kind == Kind.waits for cause in found.causes)
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "aligned by round trips, off by" in said and "aligned by round trips, off by" in page.read_text()
    for text in (said, page.read_text()):
        assert ("nothing that the host did for less than" in text) == (not charged_ns)


def test_a_guest_that_died_leaves_what_the_host_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "kept.zip", tmp_path / "page.html"
    died = recording(flight=True, reason="guest gone")
    file.write_bytes(to_bytes(replace(died, guest=Raw({}, {}, died.host.header_page))))
    assert main(["spikes", "plan.json", "plc", "--from", str(file), "--report", str(page), "--json"]) == 0
    found = Explanation.model_validate(json.loads(capsys.readouterr().out))
    assert found.samples == 0 and found.reason == "guest gone"
    assert found.alignment.method == "tsc-offset"
    (ending,) = found.ending
    assert (Kind.waits, "hog") in {(charge.kind, charge.who) for charge in ending.charges}
    assert "Before it was frozen: guest gone" in page.read_text()
    # Nothing of the guest is left that a clock would be needed for.
    file.write_bytes(to_bytes(replace(died, guest=Raw({}, {}, died.host.header_page), told=UNTOLD)))
    assert main(["spikes", "plan.json", "plc", "--from", str(file), "--report", str(page), "--json"]) == 0
    found = Explanation.model_validate(json.loads(capsys.readouterr().out))
    assert found.alignment.method == "none" and found.ending == (ending,)
    assert "not aligned" in page.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--over", "fast"],
        ["--from", "no-such-file.zip"],
    ],
)
def test_wrong_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spikes", "plan.json", "plc", *words]) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["plc"], ["plc", "-o", "x.zip", "--json"]])
def test_a_flight_recorder_needs_a_guest_and_a_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "plan.json", *words, "--flight-recorder", "5s"]) == 2
    assert "needs a guest and a file" in capsys.readouterr().err


def test_a_flight_recorder_does_not_set_out_for_a_file_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "missing" / "x.zip"
    assert main(["measure", "plan.json", "plc", "-o", str(target), "--flight-recorder", "5s"]) == 2
    said = capsys.readouterr().err
    assert "cannot write" in said and "mkdir -p" in said


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--load", "cpu"], "load of your own"),
        (["--load", "none"], "load of your own"),  # written, though with its default
        (["--tools", "oslat"], "timerlat"),
        (["--live"], "without --flight-recorder"),
        (["--against", "earlier.json"], "without --flight-recorder"),
        (["--heat-map", "map.svg"], "evenkeel spikes"),
        (["--format", "hgrm"], "Evidence"),
        (["--miss-rate", "1e-5"], "leave --miss-rate out"),
        (["--moment", "after"], "leave --moment out"),
    ],
)
def test_a_flight_recorder_refuses_what_it_would_not_heed(
    words: list[str], cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", "plan.json", "plc", "-o", "x.zip", "--flight-recorder", "5s", *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"does not heed {words[0]}" in said and cure in said


def test_a_miss_is_waited_for_only_by_a_flight_recorder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "plan.json", "plc", "--on-miss", "50us"]) == 2
    assert "add --flight-recorder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("words", [["--for", "10s"], ["--period", "1ms"]])
@pytest.mark.parametrize("verb", [["spikes"], ["trace", "explain"]])
def test_a_kept_recording_refuses_what_only_recording_heeds(
    words: list[str], verb: list[str], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "plan.json", "plc", "--from", str(kept), *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"does not heed {words[0]}" in said and "leave --from out" in said
