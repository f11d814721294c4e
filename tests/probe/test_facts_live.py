"""Facts of the machine that runs the tests: whatever it is, they are valid and agree with what the kernel tells us."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.machines.address import resolve
from evenkeel.machines.tree import TreeMachine
from evenkeel.probe.facts import read_facts


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    return read_facts("/")


@pytest.fixture(scope="module")
def facts(raw: dict[str, Any]) -> Facts:
    return Facts.model_validate(raw)


def test_valid_and_plain_json(raw: dict[str, Any], facts: Facts) -> None:
    assert Facts.model_validate_json(json.dumps(raw)) == facts
    assert Facts.from_json(facts.to_json(), file="facts.json") == facts


def test_as_the_kernel_tells_this_process(facts: Facts) -> None:
    uname = os.uname()
    assert facts.kernel.release == uname.release
    assert facts.kernel.version == uname.version
    assert facts.identity.architecture == uname.machine
    assert facts.identity.hostname == uname.nodename
    assert os.sched_getaffinity(0) <= facts.online
    assert len(facts.online) == os.sysconf("SC_NPROCESSORS_ONLN")
    assert facts.programs["python"] == platform.python_version()
    assert facts.kernel.command_line == Path("/proc/cmdline").read_text().strip()


def test_every_online_cpu_is_its_own_sibling(facts: Facts) -> None:
    for cpu in facts.cpus:
        assert (cpu.id in cpu.siblings) is cpu.online


def test_no_kworker_and_no_pid(facts: Facts) -> None:
    assert all(not thread.name.startswith("kworker") for thread in facts.kernel_threads)
    for thread in facts.kernel_threads:
        assert 0 <= thread.priority <= 99
        assert (thread.priority > 0) is (thread.policy in ("fifo", "rr"))


def test_the_parts_that_nobody_changes_meanwhile_are_the_same_twice(facts: Facts) -> None:
    again = Facts.model_validate(read_facts("/"))
    for part in ("identity", "kernel", "cpus", "caches", "pci", "clocksources", "programs", "vulnerabilities"):
        assert getattr(again, part) == getattr(facts, part), part
    assert again.settings.keys() == facts.settings.keys()


def test_through_the_zipapp_it_is_the_same(facts: Facts) -> None:
    machine = resolve("local")
    with machine.probe() as probe:
        sent = Facts.model_validate(probe.call("facts"))
    assert (sent.cpus, sent.caches, sent.pci) == (facts.cpus, facts.caches, facts.pci)


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[tuple[Facts, Facts]]:
    """The facts of this machine, and those that its recording gives."""
    from base64 import b64decode

    with resolve("local").probe() as probe:
        answer = probe.call("record")
    path = tmp_path / "self.tar.bz2"
    path.write_bytes(b64decode(answer["tarball"]))
    with TreeMachine(path).probe() as probe:
        yield Facts.model_validate(answer["facts"]), Facts.model_validate(probe.call("facts"))


def test_a_recording_of_this_machine_gives_the_same_bytes(recorded: tuple[Facts, Facts]) -> None:
    live, replayed = recorded
    # a recording has no permissions of its own
    assert replayed.model_copy(update={"unreadable": live.unreadable}).to_json() == live.to_json()
