"""The order of writing, and the kernel command line as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.plan import BootArgument, Phase, Setting
from evenkeel.plan import make_plan
from evenkeel.plan.order import boot_value, command_line, order_settings, parse_command_line
from tests.plan.factories import make_facts, make_site


def boot(key: str, new: str | None, after: str | None = None) -> Setting:
    return Setting(
        id=f"X:{key}{after or ''}",
        rule="X",
        title="x",
        target=BootArgument(key=key, after=after),
        old=None,
        new=new,
        status="change",
        phase=Phase.BOOT,
        disturbance="reboot",
        reason="x",
        verification="x",
        risk="x",
        source="x",
    )


def test_phases_in_the_order_of_applying() -> None:
    settings = make_plan(make_site(), {"cell": make_facts()}).hosts[0].settings
    phases = [list(Phase).index(setting.phase) for setting in settings]
    assert phases == sorted(phases)
    assert order_settings(settings[::-1][::-1]) == settings


@pytest.mark.parametrize(
    ("before", "settings", "after"),
    [
        ("root=/dev/sda ro", [boot("skew_tick", "1")], "root=/dev/sda ro skew_tick=1"),
        ("skew_tick=0 ro", [boot("skew_tick", "1")], "ro skew_tick=1"),
        ("ro skew_tick=0 skew-tick=2", [boot("skew_tick", "1")], "ro skew_tick=1"),
        ("ro isolcpus=3", [boot("isolcpus", None)], "ro"),
        ("ro", [boot("rcu_nocb_poll", "")], "ro rcu_nocb_poll"),
        ('a="b c" ro', [boot("tsc", "reliable")], 'a="b c" ro tsc=reliable'),
        ("ro -- single", [boot("tsc", "x")], "ro tsc=x -- single"),
        # Pairs: ours replaces its own size and a count without a size, another size stays.
        ("hugepages=9", [boot("hugepages", "1:4", "hugepagesz=2M")], "hugepagesz=2M hugepages=1:4"),
        (
            "hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=9",
            [boot("hugepages", "1:4", "hugepagesz=2M"), boot("default_hugepagesz", "2M")],
            "hugepagesz=1G hugepages=2 default_hugepagesz=2M hugepagesz=2M hugepages=1:4",
        ),
    ],
)
def test_command_line(before: str, settings: list[Setting], after: str) -> None:
    assert command_line(before, settings) == after
    assert command_line(after, settings) == after


def test_boot_value() -> None:
    line = "quiet tsc=a tsc=b hugepagesz=2M hugepages=4 hugepagesz=1G hugepages=1 nohz-full=3 -- tsc=c"
    assert boot_value(line, "tsc") == "b"
    assert boot_value(line, "quiet") == ""
    assert boot_value(line, "debug") is None
    assert boot_value(line, "nohz_full") == "3"
    assert boot_value(line, "hugepages", "hugepagesz=2M") == "4"
    assert boot_value(line, "hugepages", "hugepagesz=64K") is None


words = st.from_regex(r"\A[a-z][a-z_.]{0,8}(=[a-z0-9,:]{0,6})?\Z")


@given(
    st.lists(words, max_size=8), st.dictionaries(st.from_regex(r"\A[a-z]{1,4}\Z"), st.sampled_from(("", "1", "2-3")))
)
def test_merging_is_idempotent_and_keeps_what_is_not_ours(existing: list[str], wanted: dict[str, str]) -> None:
    settings = [boot(key, value) for key, value in wanted.items()]
    merged = command_line(" ".join(existing), settings)
    assert command_line(merged, settings) == merged
    for key, value in wanted.items():
        assert boot_value(merged, key) == value
    kept = [word for word in existing if word.partition("=")[0] not in wanted]
    assert [str(a) for a in parse_command_line(merged)][: len(kept)] == [
        str(a) for a in parse_command_line(" ".join(kept))
    ]
