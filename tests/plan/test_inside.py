"""The inside of guests: what is listed for their owners, and that a real shell and a real parser take the user data."""

from __future__ import annotations

import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from evenkeel.documents.plan import GuestPlan, HostPlan
from evenkeel.documents.site import Boot, Disk, GuestWish
from evenkeel.plan import make_plan
from evenkeel.plan.order import boot_value
from tests.plan.factories import guest, make_facts, make_site

DISK: dict[str, Any] = {"boot": None, "disks": (Disk(path="/dev/vg0/plc"),)}
BOOT = Boot(kernel="/k", arguments="console=ttyS0")


def plan(wish: GuestWish, **update: Any) -> HostPlan:
    return make_plan(make_site({"plc": wish}), {"cell": make_facts(**update)}).hosts[0]


def notes(host: HostPlan, rule: str) -> list[str]:
    return [note.text for note in host.notes if note.rule == rule]


def files(one: GuestPlan) -> dict[str, str]:
    """Path -> content of the user data, by a real YAML parser."""
    assert one.cloud_config.startswith("#cloud-config\n")
    data = YAML(typ="safe").load(StringIO(one.cloud_config))
    return {file["path"]: file["content"] for file in data["write_files"]}


def test_a_guest_with_a_boot_loader_of_its_own() -> None:
    host = plan(guest(vcpus=3, **DISK), cores=5)
    (said,) = notes(host, "I-CMD")
    assert "isolcpus=managed_irq,domain,1-2 nohz_full=1-2 rcu_nocbs=1-2 irqaffinity=0" in said
    assert "evenkeel explain PLAN GUEST" in said
    assert host.guests[0].guest_arguments == ""  # nothing is added to what nobody here boots


def test_a_directly_booted_one_has_them_in_its_definition() -> None:
    host = plan(guest(boot=BOOT))
    assert notes(host, "I-CMD") == []
    assert "nohz_full=1" in host.guests[0].guest_arguments
    assert host.guests[0].cloud_config == ""  # no disk on which cloud-init could be
    assert len(notes(host, "I-SET")) == 1


def test_the_shell_adds_the_arguments_behind_what_is_there(tmp_path: Path) -> None:
    content = files(plan(guest(**DISK)).guests[0])["/etc/default/grub.d/60-evenkeel.cfg"]
    script = f'{content}\nprintf "%s" "$GRUB_CMDLINE_LINUX_DEFAULT"'
    environment = {"GRUB_CMDLINE_LINUX_DEFAULT": "quiet nohz_full=7", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", "-eu", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.startswith("quiet nohz_full=7 isolcpus=")
    assert boot_value(done.stdout, "nohz_full") == "1"  # the last one counts


def test_settings_by_trust() -> None:
    yields, spins = (plan(guest(trust=trust, **DISK)) for trust in ("yields", "spins"))
    key = "-kernel.sched_rt_runtime_us = -1"
    assert key in files(yields.guests[0])["/etc/sysctl.d/60-evenkeel.conf"].splitlines()
    assert key not in files(spins.guests[0])["/etc/sysctl.d/60-evenkeel.conf"].splitlines()
    assert "sched_rt_runtime_us" not in notes(spins, "I-SET")[0]


def test_the_fair_server_only_for_the_last_microseconds_of_one_that_yields() -> None:
    assert "fair_server/cpuN/runtime = 0 for N in 1" in notes(plan(guest(latency=40_000)), "I-SET")[0]
    assert "fair_server" not in notes(plan(guest(latency=90_000)), "I-SET")[0]
    assert "fair_server" not in notes(plan(guest(latency=40_000, trust="spins")), "I-SET")[0]


def test_files_of_the_user_data() -> None:
    realtime = files(plan(guest(**DISK)).guests[0])
    writes = realtime["/etc/tmpfiles.d/60-evenkeel.conf"].splitlines()
    assert "w /sys/kernel/mm/ksm/run - - - - 0" in writes
    assert all(len(line.split()) == 7 for line in writes)  # tmpfiles.d(5): six fields and the value
    data = YAML(typ="safe").load(StringIO(plan(guest(**DISK)).guests[0].cloud_config))
    assert data["runcmd"] == [["update-grub"]] and data["power_state"] == {"mode": "reboot"}
    mixed = plan(guest(boot=BOOT, disks=DISK["disks"])).guests[0]
    assert "/etc/default/grub.d/60-evenkeel.cfg" not in files(mixed)
    assert "power_state" not in mixed.cloud_config  # nothing there needs a reboot


def test_a_performance_guest_polls_before_it_halts() -> None:
    host = plan(guest("performance", **DISK))
    assert files(host.guests[0]) == {"/etc/modules-load.d/60-evenkeel.conf": "cpuidle-haltpoll\n"}
    assert "module cpuidle-haltpoll loaded" in notes(host, "I-SET")[0]
    assert 'poll-control state="on"' in host.guests[0].xml and 'hint-dedicated state="on"' in host.guests[0].xml


@pytest.mark.parametrize("goal", ["flexible", "balanced"])
def test_other_guests_are_left_alone(goal: str) -> None:
    host = plan(guest(goal, **DISK))
    assert host.guests[0].cloud_config == ""
    assert not [note for note in host.notes if note.rule.startswith("I-")]
    assert "poll-control" not in host.guests[0].xml


def test_a_guest_without_a_vcpu_for_its_own_house_isolates_nothing() -> None:
    host = plan(guest(vcpus=1, **DISK))
    assert notes(host, "I-CMD") == [] and "/etc/default/grub.d/60-evenkeel.cfg" not in files(host.guests[0])


def test_the_clock_source_is_a_note_only_where_it_is_in_doubt() -> None:
    assert notes(plan(guest()), "I-CLK") == []
    doubtful = plan(guest(), clocksource="hpet", clocksources=("hpet", "acpi_pm"))
    assert "clock source hpet" in notes(doubtful, "I-CLK")[0]


def test_the_same_bytes_each_time_and_nothing_that_a_shell_expands() -> None:
    one, two = (plan(guest(vcpus=4, latency=40_000, **DISK), cores=6).guests[0].cloud_config for _ in range(2))
    assert one == two
    assert one.replace("$GRUB_CMDLINE_LINUX_DEFAULT", "").count("$") == 0 and "`" not in one
