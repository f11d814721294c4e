"""The plan as a whole: the demo, byte stability, purity."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evenkeel.plan
from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.facts import Facts, Node, TuningOwner
from evenkeel.documents.plan import (
    BootArgument,
    FileValue,
    HostPlan,
    InterruptAffinity,
    Plan,
    ThreadSchedule,
    UnitState,
)
from evenkeel.documents.site import HostWish, Site
from evenkeel.plan import make_plan
from evenkeel.plan.order import command_line
from tests.plan.factories import guest, make_facts, make_site
from tests.plan.test_ledger import machines

#: What plan/ may import besides Evenkeel: nothing that reads, waits, rolls dice or tells the time.
PURE = {
    "__future__", "collections", "dataclasses", "difflib", "enum", "fractions", "functools", "hashlib", "itertools",
    "math", "operator", "re", "types", "typing", "uuid", "xml", "pydantic", "ruamel", "io", "numpy", "highspy",
}  # fmt: skip


def demo() -> HostPlan:
    return make_plan(make_site(), {"cell": make_facts()}).hosts[0]


def test_demo_plan() -> None:
    host = demo()
    assert (host.name, host.address, host.preempt_rt) == ("cell", "virtual:plc", True)
    assert host.facts_sha256 == make_facts().sha256()
    assert host.fingerprint == make_facts().fingerprint()
    plc = host.guests[1]
    assert (plc.node, plc.pages, format_cpus(plc.emulator_cpus)) == (1, 192, "6-7")
    assert [(format_cpus(vcpu.cpus), vcpu.policy, vcpu.priority) for vcpu in plc.vcpus] == [
        ("8", "other", 0),
        ("10", "fifo", 2),
    ]
    assert host.guests[0].vcpus[0].cpus == {2, 3, 4, 5}
    boot = {setting.id: setting.new for setting in host.settings if setting.phase.value == "boot"}
    assert boot == {
        "H-ISO-1": "managed_irq,8-11",
        "H-ISO-2": "8-11",
        "H-ISO-3": "8-11",
        "H-ISO-4": "0-1,6-7",
        "H-ISO-5": "11",
        "H-ISO-5:patience": "1000",
        "H-ISO-6": "1",
        "H-HP-1:default": "2M",
        "H-HP-1:2M": "1:192",
    }


def test_the_example_is_the_demo() -> None:
    from evenkeel.plan.sitefile import parse_site

    file = Path(__file__).parents[2] / "examples" / "plc" / "site.yaml"
    site = parse_site(file.read_text(), file=str(file))
    host = make_plan(site, {next(iter(site.hosts)): make_facts()}).hosts[0]
    assert host.ledger.model_dump(exclude={"why"}) == demo().ledger.model_dump(exclude={"why"})
    assert "the node of ens3" in " ".join(host.ledger.why)


def test_a_plan_survives_being_saved() -> None:
    plan = make_plan(make_site(), {"cell": make_facts()})
    assert Plan.from_json(plan.to_json(), file="plan.json") == plan


def shuffled(facts: Facts, seed: int) -> Facts:
    """The same machine, told in another order."""
    dice = random.Random(seed)

    def mix(items: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(dice.sample(items, len(items)))

    parts = ("nodes", "caches", "pci", "nics", "blocks", "interrupts", "kernel_threads", "owners", "huge_pages")
    update: dict[str, object] = {name: mix(getattr(facts, name)) for name in parts}
    update["settings"] = dict(mix(tuple(facts.settings.items())))  # type: ignore[arg-type]
    return facts.model_copy(update=update)


def without_digests(plan: Plan) -> Plan:
    """Facts told in another order are other facts to a digest."""
    hosts = tuple(host.model_copy(update={"fingerprint": {}, "facts_sha256": ""}) for host in plan.hosts)
    return plan.model_copy(update={"hosts": hosts})


@settings(max_examples=40, deadline=None)
@given(st.integers())
def test_same_input_same_bytes_in_any_order(seed: int) -> None:
    guests = {
        "plc": guest(latency=50_000),
        "db": guest("performance"),
        "gui": guest("balanced"),
        "log": guest("flexible"),
    }
    facts = make_facts(cores=5)
    site = make_site(guests)
    plan = make_plan(site, {"cell": facts})
    assert make_plan(site, {"cell": facts}).to_json() == plan.to_json()
    names = random.Random(seed).sample(sorted(guests), len(guests))
    other = make_plan(make_site({name: guests[name] for name in names}), {"cell": shuffled(facts, seed)})
    assert without_digests(other).to_json() == without_digests(plan).to_json()


@settings(max_examples=30, deadline=None)
@given(machines())
def test_hosts_do_not_depend_on_each_other(facts: Facts) -> None:
    if not facts.online:
        return
    wish = HostWish(address="local")
    guests = {"log": guest("flexible", host="b", vcpus=1, memory=1 << 20)}
    fine = {"a": facts, "b": make_facts()}
    both = make_plan(Site(hosts={"b": wish, "a": wish}, guests=guests), fine)
    assert [host.name for host in both.hosts] == ["a", "b"]
    alone = make_plan(Site(hosts={"b": wish}, guests=guests), {"b": make_facts()})
    assert both.hosts[1] == alone.hosts[0]


def test_planning_does_no_io() -> None:
    folder = Path(evenkeel.plan.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("open", "print", "input", "exec", "eval", "id", "hash"), (
                    f"{file}:{node.lineno}"
                )
            for name in names:
                top, _, rest = name.partition(".")
                if top == "evenkeel":
                    part = rest.partition(".")[0]
                    assert part in ("documents", "errors", "plan"), f"{file} imports {name}"
                else:
                    assert top in PURE, f"{file} imports {name}"


def test_reading_a_site_does_not_load_the_rules() -> None:
    import subprocess
    import sys

    code = "import sys, evenkeel.plan.sitefile; print('evenkeel.plan.rules' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def applied(facts: Facts, host: HostPlan) -> Facts:
    """The machine after everything in the plan was written and it was booted again."""
    files = dict(facts.settings)
    update: dict[str, Any] = {}
    threads = {thread.name: thread for thread in facts.kernel_threads}
    affinity: dict[str, str] = {}
    pools: dict[str, int] = {}
    stopped: set[str] = set()
    for setting in host.settings:
        target, new = setting.target, setting.new or ""
        if setting.status == "absent":
            continue
        if isinstance(target, FileValue):
            # The kernel prints more than it was given: leading zeros, every choice.
            files[target.path] = {"cpumask": f"0{new}", "choice": f"always [{new}]"}.get(target.compare, new)
            if "hugepages-" in target.path:
                pools[target.path] = int(new)
        elif isinstance(target, BootArgument) and target.effective:
            files[target.effective.path] = target.effective_value or new
        elif isinstance(target, ThreadSchedule):
            policy, _, priority = new.partition(":")
            found = threads[target.name].model_copy(update={"policy": policy, "priority": int(priority)})
            threads[target.name] = found
        elif isinstance(target, InterruptAffinity):
            affinity[target.action] = new
        elif isinstance(target, UnitState):
            stopped.add(target.unit.removesuffix(".service"))

    def with_pools(node: Node) -> Node:
        return node.model_copy(
            update={
                "huge_pages": tuple(
                    pages.model_copy(
                        update={
                            "total": pools.get(
                                f"/sys/devices/system/node/node{node.id}/hugepages/"
                                f"hugepages-{pages.page_bytes >> 10}kB/nr_hugepages",
                                pages.total,
                            ),
                            "free": 0,  # the guests run
                        }
                    )
                    for pages in node.huge_pages
                )
            }
        )

    update["settings"] = files
    update["kernel"] = facts.kernel.model_copy(
        update={"command_line": command_line(facts.kernel.command_line, host.settings)}
    )
    update["nodes"] = tuple(with_pools(node) for node in facts.nodes)
    update["kernel_threads"] = tuple(threads.values())
    update["interrupts"] = tuple(
        interrupt.model_copy(update={"affinity": parse_cpus(affinity.get(interrupt.action, ""))})
        if interrupt.action in affinity
        else interrupt
        for interrupt in facts.interrupts
    )
    update["owners"] = tuple(
        owner.model_copy(update={"active": owner.active and owner.name not in stopped}) for owner in facts.owners
    )
    return facts.model_copy(update=update)


@pytest.mark.parametrize("kernel", ["5.10.0-rt", "6.1.0-rt", "6.8.0-rt", "6.12.1-rt"])
@pytest.mark.parametrize("latency", [40_000, 100_000])
def test_a_second_plan_finds_nothing_to_do(kernel: str, latency: int) -> None:
    guests = {
        "plc": guest(latency=latency),
        "db": guest("performance", near="ens2"),
        "gui": guest("balanced"),
        "log": guest("flexible"),
    }
    owners = (
        TuningOwner(name="irqbalance", active=True, evidence="process irqbalance runs"),
        TuningOwner(name="tuned", active=True, evidence="process tuned runs"),
    )
    facts = make_facts(kernel=kernel, cores=5, owners=owners, settings={"/sys/kernel/mm/ksm/run": "1"})
    first = make_plan(make_site(guests), {"cell": facts}).hosts[0]
    assert first.changes
    again = make_plan(make_site(guests), {"cell": applied(facts, first)}).hosts[0]
    assert [setting.id for setting in again.changes if setting.phase.value != "guest"] == []
    assert again.ledger == first.ledger
    assert again.guests == first.guests
    assert again.fingerprint == first.fingerprint
