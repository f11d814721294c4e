"""Rules about the KVM modules."""

from __future__ import annotations

from evenkeel.documents.plan import BootArgument
from tests.plan.factories import guest, make_facts
from tests.plan.rules.ask import of, one, plan

KVM = "/sys/module/kvm/parameters/"
NEW_KERNEL = {KVM + "kvmclock_periodic_sync": "Y", KVM + "enable_virt_at_load": "Y", KVM + "lapic_timer_advance": "Y"}


def values(settings: dict[str, str], line: str = "ro") -> dict[str, tuple[str | None, str]]:
    host = plan(make_facts(settings=settings, command_line=line))
    return {setting.id: (setting.new, setting.status) for setting in of(host, "R-KVM-4")}


def test_only_what_is_not_so_by_itself_goes_on_the_command_line() -> None:
    assert values(NEW_KERNEL) == {"R-KVM-4:kvmclock_periodic_sync": ("0", "change")}
    assert values({}) == {}  # the modules are not loaded: nothing is known of them


def test_what_was_set_stays_set() -> None:
    """Else the second plan would take the argument away, and the third bring it back."""
    settings = NEW_KERNEL | {KVM + "kvmclock_periodic_sync": "N"}
    assert values(settings) == {}
    assert values(settings, "ro kvm.kvmclock_periodic_sync=0") == {"R-KVM-4:kvmclock_periodic_sync": ("0", "satisfied")}
    # On the command line, and the module took another value all the same.
    assert values(NEW_KERNEL, "ro kvm.kvmclock_periodic_sync=0") == {"R-KVM-4:kvmclock_periodic_sync": ("0", "change")}


def test_pause_loops_by_vendor() -> None:
    assert values({"/sys/module/kvm_intel/parameters/ple_gap": "128"}) == {"R-KVM-4:ple_gap": ("0", "change")}
    amd = plan(make_facts(settings={"/sys/module/kvm_amd/parameters/pause_filter_count": "3000"}))
    target = one(amd, "R-KVM-4:pause_filter_count").target
    assert isinstance(target, BootArgument) and target.effective is not None
    assert (target.key, target.effective_value) == ("kvm_amd.pause_filter_count", "0")
    assert values({"/sys/module/kvm_amd/parameters/pause_filter_count": "0"}) == {}


def test_performance_guests_may_be_crowded_and_keep_pause_loop_exits() -> None:
    facts = make_facts(settings={"/sys/module/kvm_intel/parameters/ple_gap": "128"})
    assert of(plan(facts, {"db": guest("performance")}), "R-KVM-4") == []


def test_timer_advance_by_the_name_that_the_kernel_has() -> None:
    old = KVM + "lapic_timer_advance_ns"
    found = one(plan(make_facts(kernel="6.1.0-rt", settings={old: "7000"})), "R-KVM-3")
    assert (found.new, found.status) == ("-1", "change")
    assert one(plan(make_facts(kernel="6.1.0-rt", settings={old: "-1"})), "R-KVM-3").status == "satisfied"
    assert of(plan(make_facts(settings=NEW_KERNEL)), "R-KVM-3") == []
    assert values(NEW_KERNEL | {KVM + "lapic_timer_advance": "N"})["R-KVM-4:lapic_timer_advance"] == ("1", "change")
