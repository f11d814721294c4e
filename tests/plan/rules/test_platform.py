"""Rules about the machine below the kernel, its clock, and what the kernel writes to a console."""

from __future__ import annotations

import pytest

from evenkeel.documents.facts import PciFunction, TuningOwner
from evenkeel.documents.plan import BootArgument, UnitState
from evenkeel.documents.site import Override
from tests.plan.factories import guest, make_facts
from tests.plan.rules.ask import metal, notes_of, of, one, plan

PRINTK = "/proc/sys/kernel/printk"
CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
VFIO = PciFunction(address="0000:3b:02.0", class_code="020000", vendor="8086", device="154c", driver="vfio-pci")


def test_siblings_stay_unless_the_owner_wants_them_gone() -> None:
    assert of(plan(), "H-SMT") == []
    host = plan(overrides={"H-SMT": Override(value="", because="the auditor asks for it")})
    setting = one(host, "H-SMT")
    assert (setting.target, setting.new, setting.status) == (BootArgument(key="nosmt"), "", "change")
    assert "kept empty already (9,11)" in setting.reason and "made anew" in setting.reason
    alone = plan(make_facts(threads=1, cores=4), overrides={"H-SMT": Override(value="", because="x")})
    assert of(alone, "H-SMT") == []


def test_the_iommu_is_for_devices_that_are_passed_through() -> None:
    assert of(plan(), "H-IOMMU") == []
    facts = make_facts(kvm_parameters={"kvm_intel": {}})
    passing = facts.model_copy(update={"pci": (*facts.pci, VFIO)})
    assert {setting.id: setting.new for setting in of(plan(passing), "H-IOMMU")} == {
        "H-IOMMU:intel_iommu": "on",
        "H-IOMMU:iommu": "pt",
    }
    amd = passing.model_copy(update={"kvm_parameters": {"kvm_amd": {}}})
    assert [setting.id for setting in of(plan(amd), "H-IOMMU")] == ["H-IOMMU:iommu"]
    asked = plan(overrides={"H-IOMMU": Override(value="pt", because="a card will come")})
    assert [(setting.id, setting.new) for setting in of(asked, "H-IOMMU")] == [("H-IOMMU:iommu", "pt")]


def test_interrupts_of_the_firmware_are_reported_on_metal_only() -> None:
    assert notes_of(plan(), "R-SMI") == []
    facts = metal()
    (note,) = notes_of(plan(facts), "R-SMI")
    assert "CONFIG_HWLAT_TRACER" in note
    has = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"config": {"HWLAT_TRACER": "y"}})})
    assert "which this kernel has" in notes_of(plan(has), "R-SMI")[0]
    assert notes_of(plan(facts, {"db": guest("performance")}), "R-SMI") == []


def test_updates_of_the_firmware_wait_and_health_is_not_hidden() -> None:
    assert of(plan(), "R-SVC") == []
    services = {"fwupd-refresh.timer": "starts at boot", "smartd": "process smartd runs"}
    host = plan(make_facts(services=services))
    (setting,) = of(host, "R-SVC")
    assert (setting.target, setting.new) == (UnitState(unit="fwupd-refresh.timer"), "stopped")
    assert setting.status == "change"
    done = make_facts(services={"fwupd-refresh.timer": "/etc/systemd/system/fwupd-refresh.timer: masked"})
    assert [setting.status for setting in of(plan(done), "R-SVC")] == ["satisfied"]  # and stays in the plan
    assert "smartd (the health of the disks" in notes_of(host, "R-SVC")[0]


def test_a_slow_console_gets_few_lines() -> None:
    serial = make_facts(settings={PRINTK: "7\t4\t1\t7"})
    setting = one(plan(serial), "H-CON")
    assert (setting.old, setting.new, setting.status) == ("7 4 1 7", "3 4 1 7", "change")
    assert "ttyS0" in setting.reason
    assert one(plan(make_facts(settings={PRINTK: "3\t4\t1\t7"})), "H-CON").status == "satisfied"
    assert one(plan(make_facts(settings={PRINTK: "1\t4\t1\t7"})), "H-CON").new == "1 4 1 7"  # quieter already
    assert of(plan(make_facts(command_line="ro console=tty0", settings={PRINTK: "7\t4\t1\t7"})), "H-CON") == []


@pytest.mark.parametrize(("sources", "wanted"), [(("tsc", "hpet"), "change"), (("hpet", "acpi_pm"), None)])
def test_the_tsc_where_the_kernel_offers_it(sources: tuple[str, ...], wanted: str | None) -> None:
    facts = metal(make_facts(settings={CLOCK: "hpet"}), clocksource="hpet", clocksources=sources)
    found = of(plan(facts), "H-CLK")
    assert [setting.status for setting in found] == ([wanted] if wanted else [])


def test_the_clock_of_a_virtual_host_is_not_ours() -> None:
    assert of(plan(make_facts(settings={CLOCK: "hpet"}, clocksource="hpet")), "H-CLK") == []


def test_tuned_leaves_its_helper_behind() -> None:
    tuned = TuningOwner(name="tuned", active=True, evidence="process tuned runs, active_profile: realtime-virtual-host")
    assert "rtentsk" in notes_of(plan(make_facts(owners=(tuned,))), "R-IPI")[0]
    other = tuned.model_copy(update={"evidence": "process tuned runs, active_profile: balanced"})
    assert notes_of(plan(make_facts(owners=(other,))), "R-IPI") == []
