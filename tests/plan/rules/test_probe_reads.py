"""A file that the probe does not read looks absent, and its rule would quietly do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from evenkeel.documents.facts import Frequency, Idle
from evenkeel.documents.plan import BootArgument, FileValue
from evenkeel.documents.site import Consent, ConsentKey, Override
from evenkeel.probe.facts.root import Root
from evenkeel.probe.facts.settings import read_settings
from tests.plan.factories import make_facts
from tests.plan.rules.ask import metal, plan

KVM = "/sys/module/kvm/parameters"
FILES = {
    "/proc/sys/kernel/printk": "7\t4\t1\t7",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet",
    "/sys/devices/system/cpu/cpu8/power/pm_qos_resume_latency_us": "0",
    "/sys/devices/system/cpu/cpufreq/boost": "1",
    "/sys/devices/system/cpu/cpufreq/policy8/energy_performance_preference": "default",
    "/sys/devices/system/cpu/cpufreq/policy8/scaling_governor": "powersave",
    "/sys/devices/system/cpu/intel_pstate/no_turbo": "0",
    "/sys/devices/system/machinecheck/machinecheck0/ignore_ce": "0",
    "/sys/module/kvm_amd/parameters/pause_filter_count": "3000",
    "/sys/module/kvm_intel/parameters/ple_gap": "128",
    "/sys/module/kvm_intel/parameters/preemption_timer": "N",
    "/sys/module/kvm_intel/parameters/vmentry_l1d_flush": "cond",
    f"{KVM}/enable_virt_at_load": "N",
    f"{KVM}/kvmclock_periodic_sync": "Y",
    f"{KVM}/lapic_timer_advance": "N",
    f"{KVM}/lapic_timer_advance_ns": "1000",
    f"{KVM}/nx_huge_pages": "Y",
}


def test_the_probe_reads_every_file_that_only_real_hardware_has(tmp_path: Path) -> None:
    facts = metal(
        make_facts(settings=FILES), idle=Idle(driver="intel_idle"), frequency=Frequency(driver="intel_pstate")
    )
    turbo = {key: Override(value="1", because="x") for key in ("H-PM-3:no_turbo", "H-PM-3:boost")}
    consents = {key: Consent(because="x") for key in get_args(ConsentKey)}
    paths = set()
    for setting in plan(facts, overrides=turbo, consents=consents).settings:
        target = setting.target
        if isinstance(target, BootArgument) and target.effective:
            paths.add(target.effective.path)
        elif isinstance(target, FileValue) and setting.status != "absent":
            paths.add(target.path)
    assert FILES.keys() <= paths, "a rule does not ask for its file"
    for path in paths:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n")
    assert paths <= read_settings(Root(str(tmp_path))).keys()
