"""Whatever a definition says, the linter answers or refuses it with a place; it never breaks."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.errors import WrongInput
from evenkeel.verify.hana import RULES, Guest, Host, lint
from evenkeel.verify.hana.domain import parse_domain
from tests.plan.factories import make_facts
from tests.verify.hana.factories import hana_facts, hana_xml

FACTS = hana_facts()
XML = hana_xml(FACTS)
LINES = XML.splitlines()
VALUES = [match.span(1) for match in re.finditer(r"=?'([^']*)'|(?<=>)([^<>\s]+)(?=<)", XML) if match[1] is not None]
HOSTS = {
    "none": None,
    "right": Host("right", FACTS),
    "odd": Host("odd", make_facts(numa=False)),
    "small": Host("small", make_facts(sockets=1, cores=1)),
}
WORDS = st.sampled_from(("", "0", "-1", "^0", "0-9999", "4096", "99999999999999999999", "x", "1,2,^1", "0x85", "²"))


@given(
    st.lists(st.tuples(st.sampled_from(VALUES), WORDS), max_size=4),
    st.lists(st.integers(0, len(LINES) - 1), max_size=3),
    st.sampled_from(sorted(HOSTS)),
)
@settings(max_examples=150, deadline=None)
def test_any_definition_is_answered(swaps: list[tuple[tuple[int, int], str]], gone: list[int], host: str) -> None:
    text = XML
    for (start, end), word in sorted(swaps, reverse=True):
        text = text[:start] + word + text[end:]
    text = "\n".join(line for number, line in enumerate(text.splitlines()) if number not in gone)
    try:
        domain = parse_domain(text, "hana.xml")
    except WrongInput as error:
        assert error.where and error.where.line
        return
    found = lint([Guest("hana", domain)], HOSTS[host])
    assert {check.id.partition(":")[0] for check in found.checks} == {rule.id for rule in RULES}
    for check in found.checks:
        assert check.reason or check.status != "not_checked"
        assert check.evidence or check.status != "failed", check
