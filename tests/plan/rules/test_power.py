"""Rules about idle states and frequencies: per CPU by default, for the whole host only on request."""

from __future__ import annotations

import pytest

from evenkeel.documents.facts import Facts, Frequency, Idle
from evenkeel.documents.plan import BootArgument, FileValue
from evenkeel.documents.site import Override
from tests.plan.factories import guest, make_facts
from tests.plan.rules.ask import metal, notes_of, of, one, plan

POLICY = "/sys/devices/system/cpu/cpufreq/policy8"


def server(driver: str = "intel_pstate", **settings: str) -> Facts:
    """A host with idle states and frequencies, which an emulated machine lacks."""
    files = {f"/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us": "0" for cpu in range(12)}
    files |= {
        f"{POLICY}/scaling_governor": "powersave",
        f"{POLICY}/energy_performance_preference": "balance_performance",
        "/sys/devices/system/cpu/intel_pstate/no_turbo": "0",
    }
    facts = make_facts(settings=files | settings)
    return metal(facts, idle=Idle(driver="intel_idle"), frequency=Frequency(driver=driver))


def asked(value: str) -> Override:
    return Override(value=value, because="measured here")


def test_by_default_only_the_cpus_of_vcpus_are_kept_awake() -> None:
    host = plan(server())
    assert {setting.id: setting.new for setting in of(host, "H-PM-1")} == {"H-PM-1:cpu8": "25", "H-PM-1:cpu10": "25"}
    assert of(host, "H-C") == of(host, "H-P") == []
    assert notes_of(host, "H-PM-2") == []


def test_idle_states_of_the_whole_host_on_request() -> None:
    host = plan(server(), overrides={"H-C:processor": asked("1"), "H-C:intel_idle": asked("0")})
    found = {setting.target.key: setting.new for setting in of(host, "H-C") if isinstance(setting.target, BootArgument)}
    assert found == {"intel_idle.max_cstate": "0", "processor.max_cstate": "1"}  # idle=poll was not asked for
    assert one(host, "H-C:processor").reason.startswith(
        "the owner sets it: measured here (the rule would leave it alone:"
    )
    # A machine without an idle driver has nothing to limit; the wish is noted, not lost.
    nothing = plan(overrides={"H-C": asked("1")})
    assert of(nothing, "H-C") == [] and "nothing to change" in notes_of(nothing, "H-C")[0]


@pytest.mark.parametrize(
    ("driver", "key"),
    [("intel_pstate", "intel_pstate"), ("intel_cpufreq", "intel_pstate"), ("amd-pstate-epp", "amd_pstate")],
)
def test_frequency_driver_on_request(driver: str, key: str) -> None:
    host = plan(server(driver), overrides={"H-P": asked("disable")})
    (setting,) = of(host, "H-P")
    assert (setting.target, setting.new, setting.status) == (BootArgument(key=key), "disable", "change")
    assert of(plan(server("acpi-cpufreq"), overrides={"H-P": asked("disable")}), "H-P") == []


def test_the_processor_is_told_too_where_it_chooses_the_clock() -> None:
    host = plan(server())
    assert one(host, "H-PM-3:cpu8").new == "performance"
    assert one(host, "H-PM-3:preference-cpu8").old == "balance_performance"
    assert host.setting("H-PM-3:preference-cpu10") is None  # follows the policy of another CPU


def test_turbo_is_the_owners_choice() -> None:
    assert plan(server()).setting("H-PM-3:no_turbo") is None
    host = plan(server(), overrides={"H-PM-3:no_turbo": asked("1")})
    setting = one(host, "H-PM-3:no_turbo")
    assert isinstance(setting.target, FileValue)
    assert (setting.new, setting.status) == ("1", "change")
    done = plan(
        server(**{"/sys/devices/system/cpu/intel_pstate/no_turbo": "1"}), overrides={"H-PM-3:no_turbo": asked("1")}
    )
    assert one(done, "H-PM-3:no_turbo").status == "satisfied"


def test_a_request_that_no_rule_knows_is_refused() -> None:
    from evenkeel.errors import WrongInput

    with pytest.raises(WrongInput, match="there is no rule H-C:processr") as caught:
        plan(server(), overrides={"H-C:processr": asked("1")})
    assert "did you mean H-C:processor?" in (caught.value.hint or "")
    # Where the rule has nothing to say at all, nobody can tell a mistake; the wish is noted.
    assert "nothing to change" in notes_of(plan(overrides={"H-C:processr": asked("1")}), "H-C")[0]


def test_a_strict_deadline_allows_no_sleep_at_all() -> None:
    host = plan(server(), guests={"plc": guest(latency=50_000)})
    assert {setting.new for setting in of(host, "H-PM-1")} == {"n/a"}
