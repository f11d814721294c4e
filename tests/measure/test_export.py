"""Evidence for other tools: HdrHistogram's own rows, cyclictest's JSON read back, Prometheus's own parser."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from evenkeel.cli import main
from evenkeel.documents.evidence import EMULATION_NOTE, Evidence
from evenkeel.documents.histogram import Histogram
from evenkeel.errors import WrongInput
from evenkeel.measure.cyclictest import latencies
from evenkeel.measure.export import chosen, cyclictest, hgrm, levels, percentile_table, prometheus
from tests.measure.test_verb import saved
from tests.measure.test_verdict import evidence, run

RECORDED = Path(__file__).parent / "recorded"
BOTH = evidence(run(), run({7: 50, 400: 2}, where="host", guest=None, cpus=frozenset({3})))


# -- HdrHistogram -------------------------------------------------------------------------------------------------


def test_every_row_is_the_one_that_hdrhistogram_writes() -> None:
    """Recorded: the same 20,000 values in HdrHistogram's Python port, whose buckets of 2 digits are those of BITS."""
    values = {
        int(key): count for key, count in json.loads((RECORDED / "hdrhistogram.json").read_text())["values"].items()
    }
    theirs = (RECORDED / "hdrhistogram.hgrm").read_text().splitlines()
    rows = [line for line in theirs[2:] if not line.startswith("#")]
    shares = [float(line.split()[1]) for line in rows]
    histogram = Histogram.log_linear(values)
    ours = [((histogram.upper_ns(low) - 1000) / 1000, histogram.counts[low]) for low in sorted(histogram.counts)]
    found = percentile_table(ours, shares, 2).splitlines()
    assert found[:2] == theirs[:2]
    # The shares were read from text of twelve digits, so the last column may differ in its last digit.
    assert [line[:41] for line in found[2 : 2 + len(rows)]] == [line[:41] for line in rows]
    for mine, their in zip(found[2:], rows[:-1], strict=False):
        assert float(mine.split()[3]) == pytest.approx(float(their.split()[3]), rel=1e-4)
    mean = float(re.findall(r"Mean    = +([\d.]+)", found[-2])[0])
    assert mean == pytest.approx(176.92, rel=0.01), "they take the middle of a bucket, we its end"


def test_the_shares_are_those_of_hdrhistogram() -> None:
    """Five on each half of what is left, as in every .hgrm that the Java library wrote."""
    known = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.775, 0.8, 0.825, 0.85, 0.875, 0.8875]
    assert list(islice(levels(), len(known))) == pytest.approx(known)


@given(st.dictionaries(st.integers(0, 10**7), st.integers(1, 1000), min_size=1, max_size=60))
def test_a_table_reaches_its_end_and_never_goes_back(values: dict[int, int]) -> None:
    text = hgrm([run(values, label=EMULATION_NOTE)])
    rows = [line.split() for line in text.splitlines()[2:] if not line.startswith("#")]
    numbers = [(float(row[0]), float(row[1]), int(row[2])) for row in rows]
    assert numbers == sorted(numbers) and numbers[-1][1:] == (1.0, sum(values.values()))
    assert max(values) <= numbers[-1][0] <= max(values) * (1 + 2**-7) + 1
    assert EMULATION_NOTE in text.splitlines()[-1]


def test_samples_beyond_the_last_bucket_are_in_the_table() -> None:
    late = run({5: 10}, max_ns=70_000_000)
    late = late.model_copy(update={"histogram": Histogram.log_linear({5: 10}, overflows=1, limit=20000)})
    assert "   70000.000 1.000000000000         11\n" in hgrm([late])


# -- cyclictest ---------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 19_999), st.integers(1, 1000), min_size=1, max_size=60))
def test_cyclictests_json_is_read_back_by_our_own_reader(values: dict[int, int]) -> None:
    one = run(values, argv=("cyclictest", "--histogram=20000"))
    document = json.loads(cyclictest(evidence(one), [one]))
    (found,) = latencies(
        {"json": document, "argv": list(one.argv)}, [1], guest=one.guest, interval_us=1000, emulated=False
    )
    assert found.histogram == one.histogram and found.samples == one.samples and found.max_ns == one.max_ns


def test_it_has_the_fields_that_cyclictest_writes() -> None:
    theirs = json.loads((RECORDED / "cyclictest-host.json").read_text())["json"]
    ours = json.loads(cyclictest(BOTH, chosen(BOTH, None)))
    assert theirs.keys() - ours.keys() == {"end_time", "start_time", "return_code"}
    assert ours["thread"]["0"].keys() == theirs["thread"]["0"].keys()
    assert ours["sysinfo"].keys() < theirs["sysinfo"].keys()


def test_other_units_are_refused() -> None:
    fine = run({5: 3}, histogram=Histogram.log_linear({5000: 3}, bucket_ns=1), samples=3)
    with pytest.raises(WrongInput, match="does not count in microseconds"):
        cyclictest(BOTH, [fine])


# -- Prometheus ---------------------------------------------------------------------------------------------------


def samples(found: Evidence) -> list[Any]:
    return [sample for family in text_string_to_metric_families(prometheus([found])) for sample in family.samples]


def test_prometheus_reads_what_we_write(tmp_path: Path) -> None:
    file = Evidence.from_json(Path(saved(tmp_path, BOTH)).read_text(), file="x")
    found = samples(file)
    guest = [one for one in found if one.name == "evenkeel_latency_seconds_bucket" and one.labels["guest"]]
    by_edge = {float(one.labels["le"]): one.value for one in guest}
    assert by_edge[5e-6] == 59_000 and by_edge[5e-5] == 59_000 and by_edge[1e-4] == 60_000 == by_edge[float("inf")]
    values = [by_edge[edge] for edge in sorted(by_edge)]
    assert values == sorted(values)
    (count,) = [one for one in found if one.name == "evenkeel_latency_seconds_count" and one.labels["guest"]]
    assert count.value == 60_000 and count.labels["cpu"] == "1" and count.labels["moment"] == "after"
    states = {one.labels["state"]: one.value for one in found if one.name == "evenkeel_deadline_state"}
    assert states == {"met": 1, "missed": 0, "not provable": 0, "not measured": 0}
    (goal,) = [one for one in found if one.name == "evenkeel_deadline_seconds"]
    assert goal.value == 1e-4
    assert [one.value for one in found if one.name == "evenkeel_measurement_emulated"] == [0]


@given(st.lists(st.integers(0, 19_999_999), min_size=1, max_size=50))
def test_no_bucket_promises_more_than_was_measured(values: list[int]) -> None:
    for sample in samples(evidence(run(dict(Counter(values))))):
        if sample.name == "evenkeel_latency_seconds_bucket" and sample.labels["le"] != "+Inf":
            assert sample.value <= sum(value * 1000 <= round(float(sample.labels["le"]) * 1e9) for value in values)


def test_every_metric_is_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(\w+)`", page.partition("## Metrics of a measurement")[2], re.MULTILINE))
    assert told == {family.name for family in text_string_to_metric_families(prometheus([BOTH]))}


# -- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_writes_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path, BOTH)
    assert main(["measure", file, "--format", "hgrm"]) == 0
    assert "host, CPU 3" in capsys.readouterr().out, "without a guest the host"
    assert main(["measure", file, "plc-runtime", "--format", "hgrm"]) == 0
    assert "guest plc-runtime, vCPU 1" in capsys.readouterr().out
    assert main(["measure", file, "plc-runtime", "--format", "cyclictest"]) == 0
    assert json.loads(capsys.readouterr().out)["thread"]["0"]["cycles"] == 60_000
    assert main(["measure", file, "--format", "prometheus"]) == 0
    assert list(text_string_to_metric_families(capsys.readouterr().out))
    assert main(["measure", file, "nobody", "--format", "hgrm"]) == 2
    assert "says nothing about guest nobody" in capsys.readouterr().err


def test_of_several_guests_one_is_named() -> None:
    two = evidence(run(), run(guest="other"))
    with pytest.raises(WrongInput, match="several guests"):
        chosen(two, None)
    assert [one.guest for one in chosen(two, "other")] == ["other"]
    with pytest.raises(WrongInput, match="no latency of the host"):
        chosen(evidence(run()).model_copy(update={"latencies": ()}), None)
