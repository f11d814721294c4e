"""Whatever stands in the files of a machine: facts and a plan, or an error that says what is wrong.  Never a traceback.

The machine is a recorded virtual host, or a generated one.  Files are cut, emptied, taken away, filled with garbage or
with another file's text; what the probe made of them is planned for, and shown to the doctor.  The same is done to
saved facts documents.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.facts import Facts
from evenkeel.documents.site import GuestWish
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.machines.tree import TarFiles, TreeMachine
from evenkeel.plan import make_plan
from evenkeel.plan.ledger import check_ledger
from evenkeel.probe.facts import facts_of
from evenkeel.probe.facts.root import Root
from evenkeel.verify.doctor import examine
from tests.plan.factories import GIB, MIB, guest, make_facts, make_site
from tests.plan.topologies import NAMED

RECORDED = Path(__file__).parents[1] / "machines" / "recorded" / "virtual-2s3c2t.tar.bz2"
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
#: Files that a plan hangs on; half of the mutations hit these.
TELLING = ("/cpu/", "/node/", "meminfo", "hugepages", "cmdline", "irq", "cpuinfo", "partition", "settings", "/kvm")
GARBAGE: tuple[bytes, ...] = (
    *(b"", b"\n", b"-1\n", b"0\n", b"99999999999999999999\n", b"1e9\n", b"0x1f\n", b"nan\n", b" \n", b"(null)\n"),
    *(b"0-\n", b"-\n", b",,,\n", b"0-3,2-1\n", b"4-N\n", b"all\n", b"0-8191\n", b"0-99999999\n", b"7-3\n", b"0,0,0\n"),
    *(b"ffffffff,ffffffff,ffffffff\n", b"zz,00\n", b"\x00\x00\x00", b"\xff\xfe\x00a", "µ²³①\n".encode(), b"[never\n"),
    *(b"a" * 5000, b'isolcpus="0-3 nohz_full=\n', b"\xd9\xa3\n", b"Node 0 MemTotal: -5 kB\n", b"65535\n"),
)


@cache
def recorded() -> TarFiles:
    files = TreeMachine(RECORDED).files()
    assert isinstance(files, TarFiles)
    return files


@cache
def bases() -> tuple[TarFiles, ...]:
    return (recorded(), recorded(), NAMED["hybrid"].files(), NAMED["nodes 0 and 8 of POWER, SMT 4"].files())


GUESTS: dict[str, GuestWish] = {
    "a": guest(latency=50_000, memory=64 * MIB),
    "b": guest("performance", vcpus=1, memory=64 * MIB, near="ens3"),
    "c": guest("balanced", vcpus=1, memory=64 * MIB),
    "d": guest("flexible", vcpus=1, memory=16 * MIB),
}


@st.composite
def damaged(draw: st.DrawFn) -> TarFiles:
    """A machine with up to 12 files that are not as they should be."""
    base = draw(st.sampled_from(range(len(bases()))).map(lambda index: bases()[index]))
    files = copy.copy(base)
    files._contents, files._modes = dict(base._contents), dict(base._modes)
    files._links, files._names = dict(base._links), {name: dict(inner) for name, inner in base._names.items()}
    every = sorted(base._contents)
    telling = [path for path in every if any(word in path for word in TELLING)]
    for _ in range(draw(st.sampled_from((1, 1, 2, 4, 12)))):
        path = draw(st.sampled_from(telling) | st.sampled_from(every))
        text = base._contents[path]
        match draw(st.sampled_from(("cut", "garbage", "random", "other", "gone", "gone with its folder", "ring"))):
            case "cut":
                files._contents[path] = text[: draw(st.integers(0, len(text)))]
            case "garbage":
                files._contents[path] = draw(st.sampled_from(GARBAGE))
            case "random":
                files._contents[path] = draw(st.binary(max_size=40))
            case "other":
                files._contents[path] = base._contents[draw(st.sampled_from(every))]
            case "gone":
                _forget(files, path)
            case "gone with its folder":
                folder = path.rpartition("/")[0]
                for one in every:
                    if one.startswith(f"{folder}/"):
                        _forget(files, one)
            case _:
                _forget(files, path)
                files.add_link(path, path)
    return files


def _forget(files: TarFiles, path: str) -> None:
    files._contents.pop(path, None)
    files._modes.pop(path, None)
    folder, _, name = path.rpartition("/")
    files._names.get(folder, {}).pop(name, None)


def plans_or_is_refused(facts: Facts, guests: dict[str, GuestWish]) -> None:
    """Any other exception fails the test; a plan that is made must hold."""
    try:
        plan = make_plan(make_site(guests), {"cell": facts})
    except WrongInput as error:
        for one in (error, *getattr(error, "others", ())):
            assert one.message and one.hint, one
            assert one.message.startswith(("host cell: ", "guest ")), one.message
        return
    (host,) = plan.hosts
    assert check_ledger(host.ledger, facts) == []
    assert plan.to_json()


def with_what_it_takes(facts: Facts) -> Facts:
    """So that planning gets further than 'libvirt is not installed'."""
    kernel = facts.kernel.model_copy(update={"preempt_rt": True, "release": facts.kernel.release or "6.12"})
    return facts.model_copy(
        update={"programs": {"libvirt": "9", "qemu": "7"}, "kvm_usable": True, "kernel": kernel}
        | {"identity": facts.identity.model_copy(update={"architecture": "x86_64"})}
    )


def check_tree(files: TarFiles) -> None:
    facts = Facts.model_validate(facts_of(Root(files)))
    assert Facts.from_json(facts.to_json(), file="facts.json") == facts
    assert examine(facts, "cell").to_json()
    plans_or_is_refused(facts, GUESTS)
    plans_or_is_refused(with_what_it_takes(facts), {"d": GUESTS["d"]})
    plans_or_is_refused(with_what_it_takes(facts), GUESTS)


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(damaged())
def test_any_file_of_a_machine_may_hold_anything(files: TarFiles) -> None:
    check_tree(files)


@pytest.mark.long
@settings(max_examples=1000, deadline=None, suppress_health_check=SLOW)
@given(damaged())
def test_any_file_of_a_machine_may_hold_anything_often(files: TarFiles) -> None:
    check_tree(files)


def test_the_undamaged_ones_are_planned_for() -> None:
    for files in bases():
        facts = with_what_it_takes(Facts.model_validate(facts_of(Root(files))))
        guests = {name: wish.model_copy(update={"near": None}) for name, wish in GUESTS.items()}
        if "isolcpus" in facts.kernel.command_line or facts.memory_bytes:
            assert make_plan(make_site({"d": guests["d"]}), {"cell": facts}).hosts[0].guests


# -- saved facts ------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 8191, 8192, 1 << 40, 1 << 70, 1.5, "", "0", "0-8191", "0-3,8", "4-N", "\ud800x", "a" * 300),
    *([], {}, [[]], [{}], {"": ""}, {"0": "x"}, [1, 2], "performance", "6.12", "(null)", "ffffffff", "none"),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """Every place in a JSON document."""
    if path:
        yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


@cache
def saved() -> tuple[str, tuple[tuple[Any, ...], ...]]:
    text = make_facts(cores=4).to_json()
    return text, tuple(places(json.loads(text)))


@st.composite
def damaged_documents(draw: st.DrawFn) -> Any:
    """A facts document with values replaced, taken away, doubled, or exchanged with values of other places."""
    text, every = saved()
    # By part first: most places are interrupts and kernel threads.
    parts = sorted({path[0] for path in every})
    raw = json.loads(text)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        part = draw(st.sampled_from(parts))
        path = draw(st.sampled_from([path for path in every if path[0] == part]))
        parent = raw
        try:
            for key in path[:-1]:
                parent = parent[key]
            old = parent[path[-1]]
        except (LookupError, TypeError):
            continue  # an earlier mutation took it away
        if not isinstance(parent, dict | list):
            continue
        match draw(st.sampled_from(("value", "other", "gone", "twice", "number"))):
            case "value":
                parent[path[-1]] = draw(st.sampled_from(VALUES))
            case "other":
                other = json.loads(text)
                for key in draw(st.sampled_from(every)):
                    other = other[key]
                parent[path[-1]] = other
            case "gone":
                del parent[path[-1]]
            case "twice" if isinstance(parent, list):
                parent.append(old)
            case _ if isinstance(old, int):
                parent[path[-1]] = draw(st.sampled_from((-old, old + 1, old * 2, -1, 0, 7)))
            case _:
                parent[path[-1]] = draw(st.sampled_from(VALUES))
    return raw


def check_document(raw: Any) -> None:
    try:
        facts = Facts.from_json(json.dumps(raw), file="facts.json")
    except EvenkeelError as error:
        assert error.where is not None and error.where.file == "facts.json"
        return
    assert examine(facts, "cell").to_json()
    guests = {name: wish.model_copy(update={"memory": GIB}) for name, wish in GUESTS.items()}
    plans_or_is_refused(facts, guests if facts.memory_bytes > 8 * GIB else GUESTS)


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(damaged_documents())
def test_a_facts_document_may_say_anything(raw: Any) -> None:
    check_document(raw)


@pytest.mark.long
@settings(max_examples=3000, deadline=None, suppress_health_check=SLOW)
@given(damaged_documents())
def test_a_facts_document_may_say_anything_often(raw: Any) -> None:
    check_document(raw)
