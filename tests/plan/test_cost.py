"""What a plan costs is read off the plan: a change of the definition or of a setting changes the answer."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli import main
from evenkeel.documents.cost import Cost, GuestCost, HostCost
from evenkeel.documents.facts import Frequency, Idle
from evenkeel.documents.plan import Plan
from evenkeel.documents.quantity import format_duration
from evenkeel.documents.site import Disk, GuestWish, Network
from evenkeel.plan import make_plan
from evenkeel.plan.cost import GROUPS, cost_of
from evenkeel.plan.levels import LEVELS
from tests.plan.factories import GIB, MIB, STANDARD_KERNEL, guest, make_facts, make_site

GOALS = ("flexible", "balanced", "performance", "realtime")


def host_cost(guests: dict[str, GuestWish], host: dict[str, Any] | None = None, **shape: Any) -> HostCost:
    facts = {"cell": make_facts(**({"cores": 8, "node_bytes": 8 * GIB, "interleaved": True} | shape))}
    return cost_of(make_plan(make_site(guests, **(host or {})), facts), facts).hosts[0]


def alone(goal: str, **wish: Any) -> GuestCost:
    return host_cost({"g": guest(goal, **wish)}).guests[0]


def state(cost: GuestCost | HostCost, identifier: str) -> str | None:
    item = cost.item(identifier)
    return item.state if item else None


def amount(cost: GuestCost | HostCost, identifier: str) -> str:
    item = cost.item(identifier)
    assert item, identifier
    return item.amount


@pytest.mark.parametrize(
    ("identifier", "states"),
    [
        ("migration", ("limited", "limited", "given up", "given up")),
        ("saving", ("kept", "kept", "given up", "given up")),
        ("cpu-overcommit", ("kept", "kept", "given up", "given up")),
        ("idle-cpus", (None, None, None, "given up")),
        ("memory-overcommit", ("kept", "given up", "given up", "given up")),
        ("ballooning", ("kept", "given up", "given up", "given up")),
        ("page-merging", ("kept", "given up", "given up", "given up")),
        ("performance-counters", (None, None, None, "given up")),
        ("re-pin", ("kept", "kept", "kept", "kept")),
        ("re-place", (None, None, "given up", "given up")),
    ],
)
def test_what_each_goal_costs(identifier: str, states: tuple[str | None, ...]) -> None:
    assert tuple(state(alone(goal), identifier) for goal in GOALS) == states


def test_a_stricter_goal_gives_back_nothing() -> None:
    lost = [{item.id for item in alone(goal).items if item.state == "given up"} for goal in GOALS]
    for weaker, stricter in pairwise(lost):
        assert weaker <= stricter


def test_cpus_are_numbered_and_named() -> None:
    cost = host_cost({"plc": guest("realtime"), "db": guest("performance", vcpus=3)})
    plc, db = cost.item("isolated-cpus"), cost.guests[0]
    assert plc and plc.amount == "8 CPUs of 32 (1-2,9-10,17-18,25-26)"
    assert amount(cost, "idle-cpus") == "3 CPUs of 32 (18,25-26)"
    assert amount(db, "idle-cpus") == "1 CPU (18)" and "do not fill the last core" in str(db.item("idle-cpus"))
    assert amount(cost.guests[1], "idle-cpus") == "2 CPUs (25-26)"
    assert amount(cost, "housekeeping") == "4 CPUs of 32 (0,8,16,24)"
    assert amount(cost, "shared-cpus") == "20 CPUs of 32 (3-7,11-15,19-23,27-31)"
    parts = [cost.item(name) for name in ("isolated-cpus", "housekeeping", "shared-cpus")]
    assert sum(len(item.cpus or ()) for item in parts if item) == 32


def test_without_smt_nothing_stands_empty() -> None:
    cost = host_cost({"plc": guest("realtime")}, threads=1)
    assert cost.item("idle-cpus") is None and cost.guests[0].item("idle-cpus") is None


def test_memory_is_counted_in_bytes() -> None:
    cost = host_cost({"a": guest("performance", memory=2 * GIB), "b": guest("realtime", memory=1 * GIB)})
    pool = cost.item("huge-pages")
    assert pool and pool.bytes == 3 * GIB and pool.amount.startswith("3GiB (node 0: 2GiB, 25 %;")
    assert [item.bytes for one in cost.guests if (item := one.item("memory-overcommit"))] == [2 * GIB, 1 * GIB]
    assert host_cost({"a": guest("flexible")}).item("huge-pages") is None


def test_overcommit_counts_the_neighbours() -> None:
    cost = host_cost({"a": guest("flexible", vcpus=4), "b": guest("flexible", vcpus=4)}, sockets=1, cores=4)
    assert amount(cost.guests[0], "cpu-overcommit") == "8 vCPUs on 6 CPUs (1-3,5-7)"
    assert "so do those of b" in str(cost.guests[0].item("cpu-overcommit"))


def plan_with(xml: dict[str, str], goal: str = "flexible", **wish: Any) -> GuestCost:
    """The cost of a guest after its definition was changed: ``{text: replacement}``."""
    facts = {"cell": make_facts(cores=8, node_bytes=8 * GIB)}
    plan = make_plan(make_site({"g": guest(goal, **wish)}), facts)
    text = plan.hosts[0].guests[0].xml
    for old, new in xml.items():
        assert old in text, old
        text = text.replace(old, new)
    data = json.loads(plan.to_json())
    data["hosts"][0]["guests"][0]["xml"] = text
    return cost_of(Plan.model_validate(data), facts).hosts[0].guests[0]


def test_a_device_passed_through_ends_migration() -> None:
    assert (
        state(plan_with({"<memballoon": "<hostdev mode='subsystem' type='pci'/><memballoon"}), "migration")
        == "given up"
    )
    wired = plan_with({"<memballoon": "<interface type='hostdev'/><memballoon"})
    assert state(wired, "migration") == "given up" and state(wired, "saving") == "given up"
    assert "1 device passed through" in str(wired.item("migration"))


def test_the_invariant_tsc_ends_migration_unless_its_frequency_is_fixed() -> None:
    on = 'migratable="off"', 'migratable="on"'
    assert state(plan_with({on[0]: on[1]}, "performance"), "migration") == "limited"
    feature = {"<topology": "<feature policy='require' name='invtsc'/><topology"}
    assert state(plan_with(feature), "migration") == "given up"
    fixed = feature | {'<timer name="rtc"': "<timer name='tsc' frequency='2000000000'/><timer name=\"rtc\""}
    assert state(plan_with(fixed), "migration") == "limited"
    off = {"<topology": "<feature policy='disable' name='invtsc'/><topology"}
    assert state(plan_with(off), "migration") == "limited"


def test_what_limits_migration_is_named() -> None:
    item = alone("balanced", boot=None, disks=(Disk(path="/srv/g.raw"),)).item("migration")
    assert item and "192 free pages of 2MiB" in item.because and "/srv/g.raw" in item.because
    assert plan_with({'cpu mode="host-passthrough"': 'cpu mode="custom"'}).item("migration")


def test_disks_decide_about_snapshots() -> None:
    assert alone("flexible").item("disk-snapshots") is None
    raw = alone("flexible", disks=(Disk(path="/srv/g.raw"),)).item("disk-snapshots")
    assert raw and raw.state == "limited" and "slower" in raw.because
    grown = alone("flexible", disks=(Disk(path="/srv/g.qcow2", format="qcow2"),)).item("disk-snapshots")
    assert grown and "slower" not in grown.because
    passed = plan_with({"<memballoon": "<hostdev mode='subsystem' type='pci'/><memballoon"}).item("disk-snapshots")
    assert passed and passed.state == "given up"


def test_a_balloon_counts_on_ordinary_pages_only() -> None:
    assert state(plan_with({'memballoon model="virtio"': 'memballoon model="none"'}), "ballooning") == "given up"
    assert state(plan_with({'<memballoon model="virtio" />': ""}), "ballooning") == "kept"  # libvirt adds one


@pytest.mark.parametrize(
    ("latency", "fair", "idle"),
    [(50_000, True, "none at all"), (100_000, False, "at most 25 us")],
)
def test_the_strict_level_costs_the_guard_and_all_idle_states(latency: int, fair: bool, idle: str) -> None:
    files = {f"/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us": "0" for cpu in range(32)}
    files |= {f"/sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_governor": "powersave" for cpu in range(32)}
    cost = host_cost(
        {"plc": guest("realtime", latency=latency)},
        settings=files,
        idle=Idle(driver="intel_idle", states=("POLL", "C1", "C6")),
        frequency=Frequency(driver="intel_pstate", governors=("powersave",)),
    )
    assert (state(cost, "fair-server") == "given up") is fair
    assert (state(cost, "throttling") == "given up") is fair
    assert amount(cost, "idle-states") == f"2 CPUs (9-10): {idle}"
    assert amount(cost, "frequency") == "2 CPUs (9-10)"


def test_a_guest_that_may_spin_keeps_the_guard() -> None:
    cost = host_cost({"plc": guest("realtime", latency=50_000, trust="spins")})
    assert cost.item("fair-server") is None


def test_a_host_of_flexible_guests_gives_up_nothing() -> None:
    cost = host_cost({"hmi": guest("flexible")})
    assert [item.id for item in cost.items if item.state == "given up"] == []


def test_what_this_kernel_does_not_have_costs_nothing() -> None:
    """A PREEMPT_RT kernel has no transparent huge pages to give up."""
    merging = host_cost({"g": guest("performance")}).item("merging")
    assert merging and "transparent" not in merging.amount
    ordinary = host_cost({"g": guest("performance")}, kernel=STANDARD_KERNEL, preempt_rt=False).item("merging")
    assert ordinary and "transparent huge pages" in ordinary.amount


def test_a_setting_that_the_owner_switches_off_costs_nothing() -> None:
    off = {"overrides": {"H-WD": {"off": True, "because": "ours"}}}
    assert host_cost({"g": guest("realtime")}).item("lockup-detection")
    assert host_cost({"g": guest("realtime")}, off).item("lockup-detection") is None


def test_what_the_owner_asks_for_besides_has_its_price() -> None:
    asked = {"overrides": {"H-SMT": {"value": "", "because": "the auditor wants it"}}}
    assert state(host_cost({"g": guest("realtime")}, asked), "second-threads") == "given up"
    assert host_cost({"g": guest("realtime")}).item("second-threads") is None
    consents = {"consents": {"no-audit": {"because": "we have another log"}}}
    item = host_cost({"g": guest("realtime")}, consents).item("consent:no-audit")
    assert item and item.state == "given up" and "take no-audit out" in item.instead
    assert host_cost({"g": guest("realtime")}).item("consent:no-audit") is None


def test_ways_of_the_cache_are_counted_once() -> None:
    """Code and data of one cache are two elements and the same bytes."""
    tuned = (
        "<cputune><cachetune vcpus='1'><cache id='0' level='3' type='code' size='3072' unit='KiB'/>"
        "<cache id='0' level='3' type='data' size='3072' unit='KiB'/>"
        "<cache id='1' level='3' type='both' size='1' unit='MiB'/></cachetune>"
    )
    item = plan_with({"<cputune>": tuned}, "realtime").item("cache")
    assert item and item.bytes == 4 * MIB
    assert alone("realtime").item("cache") is None


def test_every_cost_names_settings_of_the_plan() -> None:
    facts = {"cell": make_facts(cores=8, node_bytes=8 * GIB)}
    plan = make_plan(make_site({"plc": guest("realtime", latency=50_000), "db": guest("performance")}), facts)
    known = {setting.id for setting in plan.hosts[0].settings}
    cost = cost_of(plan, facts)
    named = {name for item in cost.hosts[0].items for name in item.settings}
    assert named and named <= known
    assert {"fair-server", "throttling"} <= {item.id for item in cost.hosts[0].items} & {group.id for group in GROUPS}
    assert Cost.from_json(cost.to_json(), file="cost.json") == cost


def test_the_verb_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("facts.json").write_text(make_facts().to_json())
    Path("site.yaml").write_text(
        "version: 1\nhosts: {cell: {address: local}}\nguests:\n"
        "  plc: {latency: 100us, vcpus: 2, memory: 384MiB, boot: {kernel: /k}}\n"
    )
    call = ["plan", "site.yaml", "--facts", "facts.json", "--what-you-give-up"]
    assert main(call) == 0
    out = capsys.readouterr().out
    assert re.search(r"given up +live migration", out) and re.search(
        r"given up +CPUs that stand empty +2 CPUs \(9,11\)", out
    )
    assert "Guest plc: realtime" in out and "H-ISO-2" not in out
    assert main([*call, "--json"]) == 0
    cost = Cost.from_json(capsys.readouterr().out, file="cost.json")
    assert cost.hosts[0].guests[0].name == "plc"
    assert main([*call, "-o", "plan.json"]) == 0
    assert Plan.from_json(Path("plan.json").read_text(), file="plan.json").sha256() == cost.plan_sha256


def test_networks_of_the_host_do_not_tie_it_down() -> None:
    assert state(alone("flexible", networks=(Network(user=True),), memory=512 * MIB), "migration") == "limited"


PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "goal-levels.md"


def rows(heading: str) -> dict[str, list[str]]:
    """The table of the page that has this header line: first cell -> the others."""
    table = PAGE.read_text(encoding="utf-8").partition(heading)[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {first: rest for first, *rest in cells}


def test_the_page_says_what_a_deadline_needs() -> None:
    shown = rows("| deadline | level |")
    assert [key.removeprefix("up to ") for key in shown] == [
        format_duration(level.within_ns) if level.within_ns else "none" for level in LEVELS
    ]
    for level, (name, brings) in zip(LEVELS, rows("| deadline | level |").values(), strict=True):
        assert (name.replace("`", ""), brings) == (level.name, level.brings)


def test_the_page_says_what_each_goal_costs_a_guest() -> None:
    costs = [alone(goal, disks=(Disk(path="/srv/g.raw"),)) for goal in GOALS]
    found: dict[str, list[str]] = {}
    for what in dict.fromkeys(item.what for cost in costs for item in cost.items):
        items = [next((item for item in cost.items if item.what == what), None) for cost in costs]
        found[what] = [
            ("none" if "empty" in what else "kept")
            if item is None
            else item.amount[:6]
            if "empty" in what
            else item.state
            for item in items
        ]
    assert rows("| | flexible | balanced | performance | realtime |") == found


def test_the_page_says_what_each_level_costs_the_host() -> None:
    files = {f"/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us": "0" for cpu in range(32)}
    files |= {f"/sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_governor": "powersave" for cpu in range(32)}
    found: dict[str, list[str]] = {}
    for column, level in enumerate(LEVELS):
        cost = host_cost(
            {"g": guest(level.goal, latency=level.within_ns)},
            settings=files,
            idle=Idle(driver="intel_idle", states=("POLL", "C1", "C6")),
            frequency=Frequency(driver="intel_pstate", governors=("powersave",)),
        )
        for item in cost.items:
            if item.state != "kept":
                found.setdefault(item.what, [""] * len(LEVELS))[column] = item.state
    assert rows("| | flexible | balanced | performance | realtime | realtime, strict |") == found
