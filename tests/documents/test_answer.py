"""Answers: what an earlier version has written is read, and its durations are the same."""

from __future__ import annotations

import json

from tests.report.test_flame import answer

from evenkeel.documents.answer import Answer
from evenkeel.documents.histogram import Histogram


def test_an_answer_of_version_1_has_its_durations() -> None:
    now = answer(())
    old = json.loads(now.to_json())
    for name in ("durations", "durations_ns"):
        del old[name]
    buckets = [{"low_ns": 64, "high_ns": 65, "count": 3}, {"low_ns": 130, "high_ns": 132, "count": 2}]
    text = json.dumps({**old, "version": 1, "spread": {"total_ns": 455, "buckets": buckets}})
    read = Answer.from_json(text, file="old.json")
    assert read.version == 2
    assert read.durations == Histogram(bucket_ns=1, bits=6, counts={64: 3, 130: 2})
    assert read.durations.upper_ns(130) == 132
    assert read.durations_ns == 455
    assert Answer.from_json(json.dumps({**old, "version": 1, "spread": None}), file="old.json") == now
