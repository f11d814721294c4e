"""Sending in: what is answered is what is there."""

from __future__ import annotations

import pytest

from evenkeel.lab import credits, submissions
from evenkeel.lab.lab import Lab
from evenkeel.lab.step import graph_of
from tests.lab.test_dispatcher import ANN

_STEP = {"kind": "k", "command": ["true"]}
STEPS = {
    "merge": {"step": _STEP},
    "check": {"step": {**_STEP, "limits": {"time": "5s"}}, "needs": [{"step": "merge", "when": "n:1"}]},
    "report": {"step": _STEP, "needs": ["merge", {"step": "check", "when": "n>=1"}], "join": "any"},
}


@pytest.mark.parametrize("urgent", [False, True])
def test_what_is_answered_is_what_is_there(lab: Lab, urgent: bool) -> None:
    graph = graph_of({"version": 1, "name": "test", "steps": STEPS})
    for _ in range(5):  # the last ones are beyond the credits of a month
        made = submissions.submit(lab, ANN, graph, team="kernel", urgent=urgent, reason="a customer waits")
        assert made == submissions.show(lab, ANN, made.id)
        assert made.steps == {"ready": 1, "blocked": 2}
        assert (made.asked is not None) == urgent
    assert made.urgent is False and (made.asked is None or made.asked.outcome == "beyond")
    assert credits.credit(lab, ANN).left == (0 if urgent else 3)
