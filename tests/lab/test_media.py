"""A machine is installed from an image by its BMC, is seen to be new, and is suspect with a cause when it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from evenkeel.documents.facts import Facts
from evenkeel.errors import NotAsWanted
from evenkeel.lab import allowed, claims, keeper, media, power, schema, touch
from evenkeel.lab import install as installing
from evenkeel.lab.actor import Forbidden
from evenkeel.lab.claims import Request
from evenkeel.lab.install import Installing
from evenkeel.lab.keeper import Keeper
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Policy
from evenkeel.lab.power_drivers import PowerFailed
from evenkeel.lab.power_drivers.ssh import Ssh
from evenkeel.lab.prepare import Job, Prepared, Say, WrongRequest
from evenkeel.lab.store import StoreClosed
from tests.lab.emulated import EmulatedMachine, add_endpoint, add_machine, emulated_machine, ssh_endpoint
from tests.lab.pool import add, facts
from tests.lab.redfish_stand_in import StandIn, stand_in
from tests.lab.test_power import ANN, events

IMAGE = "http://images.example.org/host.iso"
#: Time for what succeeds, also on a machine that has much else to do; for what must fail, little.
QUICK = {"power": {"ssh_s": 60.0, "bmc_s": 60.0, "down_s": 2.0, "shutdown_s": 2.0}}


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    with emulated_machine(tmp_path_factory.mktemp("chassis") / "m") as machine:
        machine.start_ssh()
        yield machine


@pytest.fixture
def bmc(chassis: EmulatedMachine, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Of host1, which is on, answers over ssh, and has a system that nobody marked."""
    monkeypatch.setattr(media, "INSERT_S", 60.0)
    monkeypatch.setattr(installing, "SET_S", 60.0)
    chassis.fault("hung", False)
    (chassis.folder / "power").write_text("1\n")
    for left in ("mark", "disk-mark", "memory", "live"):
        (chassis.folder / left).unlink(missing_ok=True)
    add_machine(lab, policy=QUICK)
    ssh_endpoint(lab, "host1", chassis._sshds[0])
    with stand_in(chassis) as made:
        add_endpoint(lab, "host1", "bmc", "redfish", made.url)
        yield made


class Then:
    """What comes behind an installation, as it was asked."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.told: Facts = facts("host1")

    def prepare(self, job: Job, say: Say) -> Prepared:
        self.jobs.append(job)
        return Prepared("boot", False, self.told, None)


def install(lab: Lab, then: Then | None = None, *, within_s: float = 120.0, image: str | None = IMAGE) -> list[str]:
    """What was said meanwhile."""
    said: list[str] = []
    job = Job("host1", "host1", "ssh://root@host1", "full", image, install_s=within_s)
    done = Installing(lab, then or Then()).prepare(job, said.append)
    assert done.anew is (image is not None)
    return said


def failed(lab: Lab, bmc: StandIn, *faults: str, within_s: float = 120.0) -> str:
    bmc.faults |= set(faults)
    with pytest.raises(NotAsWanted) as caught:
        install(lab, within_s=within_s)
    return caught.value.message


def test_an_image_is_booted_once_and_the_machine_is_new_and_then_looked_at(lab: Lab, bmc: StandIn) -> None:
    then = Then()
    said = install(lab, then)
    assert bmc.told == ["insert", "boot Cd Once", "PowerCycle", "boot None Disabled", "eject"]
    assert (bmc.image, bmc.boot["BootSourceOverrideEnabled"]) == (None, "Disabled")
    assert [job.method for job in then.jobs] == ["check"]
    assert said == [
        f"putting {IMAGE} into its virtual drive",
        "installing it: power cycle, then at most 2 min until it answers",
    ]
    assert (bmc.machine.folder / "mark").exists()  # for the next installation
    event = power.history(lab, ANN, "host1").items[0]
    assert (event.action, event.actor, event.result) == ("cycle", "lab", "done")
    with lab.store.read() as connection:  # an installation is no measure of a boot
        assert connection.execute(schema.duration.select()).all() == []


@pytest.mark.long
def test_a_machine_that_is_off_or_hung_is_installed_too_and_what_is_in_the_drive_goes(
    lab: Lab, bmc: StandIn, chassis: EmulatedMachine
) -> None:
    (chassis.folder / "power").write_text("0\n")
    bmc.image = "http://images.example.org/of-a-service-that-was-killed.iso"
    assert install(lab)[0].startswith("it does not answer now")
    assert bmc.told == ["eject", "insert", "boot Cd Once", "On", "boot None Disabled", "eject"]
    chassis.fault("hung")  # the installation mends it
    install(lab)


def test_one_without_an_image_is_left_to_the_others(lab: Lab, bmc: StandIn) -> None:
    then = Then()
    assert install(lab, then, image=None) == []
    assert ([job.method for job in then.jobs], bmc.told) == (["full"], [])


def test_an_image_that_is_refused_costs_no_reset(lab: Lab, bmc: StandIn) -> None:
    assert failed(lab, bmc, "refuses").startswith("inserting the image: BMC 127.0.0.1: HTTP POST")
    assert bmc.told == ["insert"]


@pytest.mark.long
def test_a_drive_that_stays_empty_is_seen(lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "INSERT_S", 15.0)
    assert failed(lab, bmc, "empty") == ("inserting the image: BMC 127.0.0.1 took the image, and its drive has nothing")
    assert "PowerCycle" not in bmc.told


@pytest.mark.parametrize("answers", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_image_that_was_not_booted_is_known_by_the_old_system(
    lab: Lab, bmc: StandIn, chassis: EmulatedMachine, answers: bool
) -> None:
    """Also where nothing answered before, when it was installed by the lab once."""
    install(lab)
    if not answers:
        (chassis.folder / "power").write_text("0\n")
    bmc.told.clear()
    assert failed(lab, bmc, "forgets") == ("it booted its old system: its BMC took the image, and did not boot it")
    assert (bmc.told[-1], bmc.image, bmc.boot["BootSourceOverrideTarget"]) == ("eject", None, "None")


@pytest.mark.long
def test_a_bmc_that_resets_nothing_leaves_nothing_behind(lab: Lab, bmc: StandIn) -> None:
    assert "installing it: power cycle: Redfish ResetType PowerCycle: still in boot" in failed(lab, bmc, "deaf")
    assert bmc.told[-2:] == ["boot None Disabled", "eject"]
    assert "power.lied" in events(lab)


@pytest.mark.long
def test_what_does_not_answer_in_time_is_ejected_and_no_other_way_is_tried(lab: Lab, bmc: StandIn) -> None:
    add_endpoint(lab, "host1", "pdu", "pdu", "127.0.0.1:9", agent="fence_apc", plug="1")
    said = failed(lab, bmc, "dead", within_s=4.0)
    assert said.startswith("installing it: power cycle: ") and "did not come back in time" in said
    assert bmc.told[-1] == "eject"
    assert [one.method for one in power.history(lab, ANN, "host1").items[0].tried] == ["bmc"]


@pytest.mark.long
def test_an_image_that_stays_in_the_drive_fails_a_machine_that_was_installed(
    lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be installed anew at the next boot, with what is on its disk by then."""
    monkeypatch.setattr(installing, "SET_S", 15.0)
    said = failed(lab, bmc, "keeps")
    assert said.startswith("it is installed, but the image may still be in its drive: "), said
    assert "inserting the image: its BMC says that the drive is ejected" in failed(lab, bmc)  # no other one goes in
    bmc.image = None
    bmc.faults.add("forgets")
    assert "old system" in (said := failed(lab, bmc)) and "may still be in its drive" in said


@pytest.mark.long
def test_without_a_drive_or_redfish_it_says_so(lab: Lab, bmc: StandIn) -> None:
    assert "its BMC has no virtual CD drive" in failed(lab, bmc, "no-drive")
    lab.store.write(lambda c: c.execute(schema.endpoint.delete().where(schema.endpoint.c.kind == "bmc")))
    assert "no BMC that speaks Redfish" in failed(lab, bmc)


@pytest.mark.long
def test_a_lab_that_ends_meanwhile_blames_no_machine_and_empties_the_drive(
    lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*args: object, **more: object) -> None:
        raise StoreClosed("the service is going down")

    monkeypatch.setattr(power, "switch", closed)
    with pytest.raises(StoreClosed):
        install(lab)
    assert (bmc.image, bmc.told[-1]) == (None, "eject")


# -- from a source of its holder's -------------------------------------------------------------------------------------

LIVE = "http://images.example.org/live.iso"


def lend(lab: Lab, image: str = LIVE, *, within_s: float = 120.0) -> Prepared:
    """As ann has it booted, who is its next holder."""
    job = Job("host1", "host1", "ssh://root@host1", "full", image, install_s=within_s, system_of="ann")
    return Installing(lab, Then()).prepare(job, lambda _: None)


def system_of(lab: Lab) -> str:
    with lab.store.read() as connection:
        return touch.find(connection, "host1").system_of


def medium(lab: Lab) -> str:
    with lab.store.read() as connection:
        return touch.find(connection, "host1").medium


def test_what_a_holder_booted_keeps_its_image_until_it_is_taken_out(
    lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs from it may read from it yet."""
    lend(lab)
    assert (bmc.told[-2:], bmc.image, medium(lab)) == (["PowerCycle", "boot None Disabled"], LIVE, LIVE)
    other = "http://images.example.org/mine.iso"
    lend(lab, other)  # another one of theirs takes its place
    assert (bmc.image, medium(lab)) == (other, other)
    at = Keeper(lab)
    bmc.faults.add("keeps")
    with monkeypatch.context() as patched:
        patched.setattr(installing, "SET_S", 8.0)
        at.empty("host1")
    with lab.store.read() as connection:
        found = connection.execute(select(schema.machine)).one()
    assert (found.state, found.medium) == ("suspect", other)
    assert found.state_reason.startswith(f"taking {other} out of its virtual drive: its BMC says that the drive")
    bmc.faults.clear()
    at.empty("host1")
    assert (bmc.image, medium(lab), system_of(lab)) == (None, "", "ann")


def test_what_runs_from_memory_leaves_no_mark_so_the_disk_is_booted_and_marked_before(
    lab: Lab, bmc: StandIn, chassis: EmulatedMachine
) -> None:
    """Or a system that its holder put there would pass for the owner's, where the BMC does not boot the image."""
    install(lab)
    assert (lend(lab).facts, system_of(lab)) == (None, "ann")
    (chassis.folder / "disk-mark").unlink()  # the holder installs something of theirs
    bmc.boot |= {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideEnabled": "Once"}
    bmc.told.clear()
    assert failed(lab, bmc, "forgets") == "it booted its old system: its BMC took the image, and did not boot it"
    assert bmc.told[:5] == ["eject", "boot None Disabled", "boot None Disabled", "PowerCycle", "insert"]
    bmc.faults.clear()
    assert "its system is one that ann booted, so its disk is booted first, to mark that" in install(lab)


@pytest.mark.long
@pytest.mark.parametrize("power", ["1\n", "0\n"])
def test_a_disk_that_boots_nothing_is_installed_all_the_same(
    lab: Lab, bmc: StandIn, chassis: EmulatedMachine, power: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(lab)
    monkeypatch.setattr("evenkeel.lab.power.boot_deadline_s", lambda *_: 4.0)
    (chassis.folder / "power").write_text(power)
    bmc.faults.add("blank")
    said = install(lab)
    assert "its disk boots nothing that answers, so what does after its installation is new" in said


@pytest.mark.long
def test_a_bmc_that_does_not_boot_its_disk_either_is_to_blame(lab: Lab, bmc: StandIn) -> None:
    lend(lab)
    assert failed(lab, bmc, "deaf").startswith("booting its disk: power cycle: Redfish ResetType PowerCycle: still in")
    assert "insert" not in bmc.told[-2:]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("refuses", "inserting the image: BMC 127.0.0.1: HTTP POST"),
    ],
)
def test_an_image_of_a_holder_s_that_cannot_be_had_ends_what_they_asked_for(
    lab: Lab, bmc: StandIn, fault: str, said: str
) -> None:
    """Another machine would not boot it either, and nothing was done to this one."""
    bmc.faults.add(fault)
    with pytest.raises(WrongRequest) as raised:
        lend(lab)
    assert raised.value.message.startswith(f"host1 was not booted from {LIVE}: {said}") and not raised.value.tried
    assert (system_of(lab), medium(lab)) == ("", "")


def test_one_whose_bmc_has_no_drive_is_passed_over_and_not_asked_again(lab: Lab, bmc: StandIn) -> None:
    """Where it has one after all, that is learnt too."""
    told = [{"machine_id": "host1", "key": "boot.own", "text": "yes"}]
    lab.store.write(lambda c: c.execute(schema.fact.insert(), told))

    def able() -> set[str]:
        with lab.store.read() as connection:
            return set(allowed.of_name(connection, "ann", boot_source={"image": LIVE}).able)

    assert able() == {"host1"}
    bmc.faults.add("no-drive")
    with pytest.raises(Forbidden, match="host1 cannot be booted from that: its BMC has no virtual CD drive"):
        lend(lab)
    assert (able(), system_of(lab), medium(lab), bmc.told) == (set(), "", "", [])
    bmc.faults.clear()
    install(lab)
    assert able() == {"host1"}


def test_one_that_was_booted_in_vain_is_its_holder_s_all_the_same(lab: Lab, bmc: StandIn) -> None:
    bmc.faults.add("forgets")
    with pytest.raises(WrongRequest, match="it booted its old system") as raised:
        lend(lab)
    assert (raised.value.tried, system_of(lab), medium(lab), bmc.image) == (True, "ann", "", None)


@pytest.mark.long
def test_what_does_not_come_up_is_not_held_against_the_bmc(lab: Lab, bmc: StandIn) -> None:
    bmc.faults.add("dead")
    with pytest.raises(WrongRequest, match="it went down and did not come back in time"):
        lend(lab, "http://images.example.org/mine.iso", within_s=4.0)
    assert system_of(lab) == "ann"
    assert power.plan(lab, ANN, "host1").success == {}
    assert "machine.suspect" not in events(lab)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("deaf", "booting it: power cycle: Redfish ResetType PowerCycle: still in boot"),
    ],
)
def test_what_the_machine_does_wrong_is_its_own_fault(
    lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    """It is suspect, and the next one is tried: whoever came next could be given what is in the drive."""
    monkeypatch.setattr(installing, "SET_S", 15.0)
    assert said in of_a_holder_s_failed(lab, bmc, fault)
    assert (system_of(lab), medium(lab)) == ("ann", "")


@pytest.mark.long
def test_what_was_not_booted_and_stays_in_the_drive_is_known_to_be_there(
    lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "SET_S", 15.0)
    bmc.faults.add("forgets")
    assert "old system" in (said := of_a_holder_s_failed(lab, bmc, "keeps")) and "may still be in its drive" in said
    assert (system_of(lab), medium(lab)) == ("ann", LIVE)
    assert failed(lab, bmc).startswith("emptying its virtual drive: its BMC says that the drive is ejected, and")


def of_a_holder_s_failed(lab: Lab, bmc: StandIn, fault: str) -> str:
    bmc.faults.add(fault)
    with pytest.raises(NotAsWanted) as raised:
        lend(lab)
    return raised.value.message


@pytest.mark.long
def test_a_bmc_that_does_nothing_is_to_blame_where_nothing_answered_before_either(
    lab: Lab, bmc: StandIn, chassis: EmulatedMachine
) -> None:
    chassis.fault("hung")
    bmc.faults.add("deaf")
    with pytest.raises(NotAsWanted, match="booting it: power cycle: Redfish ResetType PowerCycle: nothing answered"):
        lend(lab, within_s=4.0)
    assert system_of(lab) == "ann"
    assert "its disk boots nothing that answers" not in failed(lab, bmc, within_s=4.0)


@pytest.mark.long
def test_what_a_holder_left_and_takes_no_mark_is_named_with_the_cure(
    lab: Lab, bmc: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(lab)

    def full(ssh: Ssh, deadline_s: float) -> None:
        raise PowerFailed("touch: Read-only file system")

    monkeypatch.setattr(Ssh, "mark", full)
    with pytest.raises(NotAsWanted, match="what ann left on its disk takes no mark: touch: Read-only") as raised:
        install(lab)
    assert str(raised.value.hint).endswith("evenkeel lab machine mark host1 ready --installed")


def test_what_somebody_else_put_into_the_drive_stays_there(lab: Lab, bmc: StandIn) -> None:
    """As its owner does, who mends it."""
    lend(lab)
    bmc.image = "http://images.example.org/of-the-owner.iso"
    bmc.told.clear()
    Keeper(lab).empty("host1")
    assert (bmc.told, medium(lab)) == ([], "") and bmc.image is not None


@pytest.mark.long
def test_a_bmc_that_is_silent_is_its_own_fault_and_the_system_its_owner_s(lab: Lab, bmc: StandIn) -> None:
    table = schema.endpoint
    silent = {"address": "http://127.0.0.1:9"}
    lab.store.write(lambda c: c.execute(table.update().where(table.c.kind == "bmc").values(silent)))
    assert of_a_holder_s_failed(lab, bmc, "none").startswith("asking its BMC what it boots from: BMC 127.0.0.1")
    assert system_of(lab) == ""


@pytest.mark.parametrize(
    "image", ["ftp://x/y.iso", "http://user:secret@x/y.iso", "/srv/y.iso", "http://x", "http://x/a b", "https://x/"]
)
def test_an_image_is_an_address_that_all_may_read(image: str) -> None:
    with pytest.raises(ValidationError):
        Policy(image=image)
    assert Policy(image="https://images.example.org/a.iso?arch=x86").image


def test_the_image_of_the_policy_is_what_is_installed(lab: Lab) -> None:
    """From the policy to the job, and what that means for a machine over ssh."""
    add(lab, "host1", address="ssh://root@host1", policy=Policy(image=IMAGE, install_ns=60 * 10**9))
    claims.request(lab, ANN, Request(predicate="host1", reason="test"))
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
        job = keeper._job(connection, row)
        found = connection.execute(select(schema.machine)).one()
        assert claims.how_prepared(connection, found) == "full"
    assert job is not None and (job.image, job.install_s, job.method) == (IMAGE, 60.0, "full")
