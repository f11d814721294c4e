"""A machine is installed by network: its firmware asks the lab once what to boot, which is part of the proof.

The firmware of the chassis of files is a script that asks the real application over HTTP.  What a real iPXE makes of
the lab's answers is seen in QEMU, and a whole installation in test_netboot_machine.py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from evenkeel.errors import NotAsWanted
from evenkeel.lab import claims, keeper, schema, secrets, touch
from evenkeel.lab import install as installing
from evenkeel.lab.claims import Request
from evenkeel.lab.install import Installing
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Policy
from evenkeel.lab.netboot import Network
from evenkeel.lab.netboot_offers import ASK, FROM_DISK
from evenkeel.lab.power_drivers import Credentials, PowerFailed, Way
from evenkeel.lab.power_drivers.ipmi import Ipmi
from evenkeel.lab.power_drivers.redfish import Redfish
from evenkeel.lab.prepare import Job, Prepared, WrongRequest
from tests.lab.conftest import an_app
from tests.lab.emulated import PASSWORD, EmulatedMachine, add_endpoint, emulated_machine, pdu_endpoint, ssh_endpoint
from tests.lab.pool import ANN, ROOT, add
from tests.lab.redfish_stand_in import StandIn, stand_in
from tests.lab.serving import answering, serving
from tests.lab.test_media import QUICK, Then
from tests.waiting import until

SCRIPT = "http://images.example.org/install.ipxe"
MAC = "52:54:00:12:34:56"
#: Asks when it is set to boot from the network, or always; installs when it was told to, unless it forgets.
_FIRMWARE = """#!/bin/sh
[ -e network-first ] || [ "$(cat boot)" = pxe ] || exit 0
[ ! -e asks-nobody ] || exit 0
echo none >boot
case $(curl -sS --max-time 20 {url}/boot/{mac}) in
*chain*) [ -e forgets ] || rm -f mark ;;
esac
"""


# -- what machines are told --------------------------------------------------------------------------------------------


def test_a_machine_boots_its_disk_unless_it_is_offered_something_and_that_once(lab: Lab) -> None:
    client = TestClient(an_app(lab, who=lambda _: None))
    assert client.get("/boot.ipxe").text == ASK
    assert client.get("/boot.ipxe").headers["content-type"].startswith("text/plain")
    assert client.get(f"/boot/{MAC}").text == FROM_DISK
    taken: list[str] = []
    offer = lab.netboots.make(SCRIPT, [MAC, "52:54:00:12:34:57"], taken.append)
    assert offer is not None and not offer.taken.is_set()
    assert client.get(f"/boot/{MAC}").text == FROM_DISK  # its old system, before it is switched
    offer.open.set()
    for other in ("52-54-00-12-34-99", "no-mac", "52:54:00:12:34"):
        assert client.get(f"/boot/{other}").text == FROM_DISK
    assert client.get(f"/boot/{MAC.upper().replace(':', '-')}").text == f"#!ipxe\nchain --replace {SCRIPT}\n"
    assert offer.taken.is_set() and taken == [MAC]
    assert client.get("/boot/52:54:00:12:34:57").text == FROM_DISK  # the installer boots again, by its other card
    lab.netboots.withdraw(offer)
    assert lab.netboots.make(SCRIPT, [MAC], taken.append) is not None


def test_what_is_withdrawn_is_not_given_and_a_card_of_two_machines_is_refused(lab: Lab) -> None:
    offer = lab.netboots.make(SCRIPT, [MAC], print)
    assert offer is not None and lab.netboots.make(SCRIPT, ["52:54:00:00:00:01", MAC], print) is None
    offer.open.set()
    assert lab.netboots.script_for("52:54:00:00:00:01") == FROM_DISK  # nothing of the refused one stays
    lab.netboots.withdraw(offer)
    assert lab.netboots.script_for(MAC) == FROM_DISK and not offer.taken.is_set()


@pytest.mark.parametrize("script", ["ftp://x/y.ipxe", "http://user:secret@x/y.ipxe", "http://x/a b", "/srv/y.ipxe"])
def test_a_script_is_an_address_that_all_may_read(script: str) -> None:
    with pytest.raises(ValidationError):
        Policy(netboot=script)
    with pytest.raises(ValidationError, match="not from both"):
        Policy(netboot=SCRIPT, image=SCRIPT)


def test_the_script_of_the_policy_is_what_is_installed(lab: Lab) -> None:
    add(lab, "host1", address="ssh://root@host1", policy=Policy(netboot=SCRIPT, install_ns=60 * 10**9))
    claims.request(lab, ANN, Request(predicate="host1", reason="test"))
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
        job = keeper._job(connection, row)
    assert job is not None and (job.netboot, job.install_s, job.method) == (SCRIPT, 60.0, "full")


# -- an installation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    with emulated_machine(tmp_path_factory.mktemp("chassis") / "m") as machine:
        machine.start_ssh()
        machine.start_bmc()
        yield machine


@pytest.fixture
def host(chassis: EmulatedMachine, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedMachine]:
    """host1, which is on and answers over ssh, with a firmware that asks the lab, and no BMC yet."""
    monkeypatch.setattr(installing, "SET_S", 60.0)
    for name in ("mark", "boot", "network-first", "asks-nobody", "forgets", "commands", "hung"):
        (chassis.folder / name).unlink(missing_ok=True)
    (chassis.folder / "power").write_text("1\n")
    (chassis.folder / "boot").write_text("none\n")
    made = add(lab, "host1", policy=Policy(**QUICK))
    ssh_endpoint(lab, made.id, chassis._sshds[0])
    mac = mac_of(lab)
    with serving(an_app(lab, who=lambda _: None)) as url:
        firmware = chassis.folder / "firmware"
        firmware.write_text(_FIRMWARE.format(url=url, mac=mac.replace(":", "-")))
        firmware.chmod(0o755)
        yield chassis


def mac_of(lab: Lab) -> str:
    """Of the one network card of host1."""
    with lab.store.read() as connection:
        found = touch.find(connection, "host1")
    (mac,) = Network(lab, found, SCRIPT).macs
    return mac


def host1(lab: Lab) -> str:
    with lab.store.read() as connection:
        return touch.find(connection, "host1").id


def ipmi(lab: Lab, chassis: EmulatedMachine, **options: str) -> None:
    secrets.put(lab, ROOT, "bmc", "admin", PASSWORD)
    add_endpoint(lab, host1(lab), "bmc", "ipmi", f"127.0.0.1:{chassis.bmc_port}", secret="bmc", cipher=3, **options)


def install(lab: Lab, *, within_s: float = 120.0) -> list[str]:
    """What was said meanwhile."""
    said: list[str] = []
    job = Job("host1", "host1", "ssh://root@host1", "full", netboot=SCRIPT, install_s=within_s)
    then = Then()
    assert Installing(lab, then).prepare(job, said.append).anew
    assert [job.method for job in then.jobs] == ["check"]
    return said


def of_their_own(lab: Lab, then: Then, said: list[str] | None = None) -> Prepared:
    """As whoever reserves host1 has it booted."""
    job = Job("host1", "host1", "ssh://root@host1", "full", netboot=SCRIPT, install_s=120.0, system_of="ann")
    return Installing(lab, then).prepare(job, (said if said is not None else []).append)


def failed(lab: Lab) -> str:
    with pytest.raises(NotAsWanted) as caught:
        install(lab)
    return caught.value.message


@pytest.fixture
def redfish(host: EmulatedMachine, lab: Lab) -> Iterator[StandIn]:
    with stand_in(host) as made:
        add_endpoint(lab, host1(lab), "bmc", "redfish", made.url)
        yield made


def test_what_a_holder_boots_is_seen_in_another_boot_and_not_looked_into(
    lab: Lab, host: EmulatedMachine, redfish: StandIn
) -> None:
    then = Then()
    done = of_their_own(lab, then)
    assert (done.anew, done.facts, then.jobs) == (True, None, [])
    assert not (host.folder / "mark").exists()  # their system is left alone
    (host.folder / "asks-nobody").touch()
    with pytest.raises(WrongRequest) as caught:  # not the machine's fault: nobody calls it suspect
        of_their_own(lab, then)
    assert caught.value.message.startswith(f"host1 was not booted from {SCRIPT}: it booted, and its firmware did not")
    assert (redfish.told[-1], lab.netboots._by_mac) == ("boot None Disabled", {})


def test_a_script_of_a_holder_s_may_use_the_disk_of_the_system_before(
    lab: Lab, host: EmulatedMachine, redfish: StandIn
) -> None:
    """As one does that mends what does not boot.  That its firmware was told is proof enough, and the rest is said."""
    install(lab)
    (host.folder / "forgets").touch()  # the mark stays, as on the root of another kernel
    said: list[str] = []
    assert of_their_own(lab, Then(), said).anew
    assert said[-1].startswith("its root is the disk of before; if that is not meant, the script could not")
    (host.folder / "mark").unlink()  # of the holder's system nobody knows what is on the disk
    of_their_own(lab, Then(), said)
    assert said[-1] == "its firmware was told the script; whether it could fetch that, only its system tells"
    redfish.image = "http://images.example.org/left-by-somebody.iso"
    redfish.told.clear()
    (host.folder / "forgets").unlink()
    assert "its system is one that ann booted, so its disk is booted first, to mark that" in install(lab)
    assert redfish.told[:3] == ["eject", "boot None Disabled", "PowerCycle"]


def test_by_redfish_it_boots_from_the_network_once(lab: Lab, host: EmulatedMachine, redfish: StandIn) -> None:
    said = install(lab)
    assert redfish.told == ["boot Pxe Once", "PowerCycle", "boot None Disabled"]
    assert said == [
        f"offering it {SCRIPT}",
        "installing it: power cycle, then at most 2 min until it answers",
        f"{mac_of(lab)} asked what to boot, and was told {SCRIPT}",
    ]
    assert (host.folder / "mark").exists()  # for the next one
    assert lab.netboots._by_mac == {}


@pytest.mark.long
def test_by_ipmi_too_and_its_boot_flags_are_as_they_were(lab: Lab, host: EmulatedMachine) -> None:
    ipmi(lab, host)
    install(lab)
    assert [word for word in host.commands() if word.startswith("boot")] == ["boot pxe", "boot none"]


@pytest.mark.long
def test_without_a_bmc_the_firmware_must_ask_by_itself(lab: Lab, host: EmulatedMachine) -> None:
    (host.folder / "network-first").touch()
    assert install(lab)[0].endswith("without a BMC, its firmware must ask by itself")
    assert host.commands() == ["ssh reboot", "reset"]
    (host.folder / "network-first").unlink()
    assert failed(lab).startswith("it booted, and its firmware did not ask the lab what")
    assert lab.netboots._by_mac == {}


def test_who_was_told_in_vain_is_known_by_its_old_system(lab: Lab, host: EmulatedMachine, redfish: StandIn) -> None:
    (host.folder / "forgets").touch()
    assert failed(lab) == (f"it booted its old system: it was told to boot {SCRIPT}, and did not: can it fetch that?")
    assert redfish.told[-1] == "boot None Disabled"
    (host.folder / "asks-nobody").touch()
    assert "did not ask the lab" in failed(lab)


@pytest.mark.long
def test_a_bmc_that_will_not_is_told_before_anything_is_switched(lab: Lab, host: EmulatedMachine) -> None:
    ipmi(lab, host)
    host._bmc.kill()  # type: ignore[union-attr]
    try:
        assert failed(lab).startswith("having it boot from the network: BMC 127.0.0.1 is silent")
        assert host.commands() == [] and lab.netboots._by_mac == {}
    finally:
        host._bmc.wait()  # type: ignore[union-attr]
        host.start_bmc()


def test_a_machine_whose_cards_are_not_known_or_another_s_is_not_installed(lab: Lab, host: EmulatedMachine) -> None:
    with lab.store.read() as connection:
        found = touch.find(connection, "host1")
    mac = mac_of(lab)
    taken = lab.netboots.make(SCRIPT, [mac], print)
    assert taken is not None
    assert "is in another machine that is installed now" in failed(lab)
    lab.netboots.withdraw(taken)
    add(lab, "host2", address="ssh://root@host2")
    with lab.store.read() as connection:
        other = touch.find(connection, "host2")
    # Its owner says so, and would have host1 installed with what is theirs.
    (theirs,) = Network(lab, other, SCRIPT).macs
    claimed = {"machine_id": other.id, "key": "mac", "text": mac}
    lab.store.write(lambda c: c.execute(schema.fact.insert().values(claimed)))
    assert Network(lab, other, SCRIPT).macs == {theirs}
    with pytest.raises(NotAsWanted, match="other machines have its network cards"):
        Network(lab, found, SCRIPT)
    lab.store.write(lambda c: c.execute(schema.fact.delete().where(schema.fact.c.key == "mac")))
    with pytest.raises(NotAsWanted, match="its facts have no network card"):
        Network(lab, found, SCRIPT)


@pytest.mark.long
def test_it_is_not_installed_by_the_boot_of_somebody_else(
    lab: Lab, host: EmulatedMachine, redfish: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds it switches it: that is waited for, before anything is set or offered."""
    running = {"machine_id": host1(lab), "action": "reset", "actor": "ann", "at_ns": 0, "tried": []}
    table = schema.power_event
    lab.store.write(lambda c: c.execute(table.insert().values(running | {"result": "running"})))
    monkeypatch.setattr(installing, "_OTHERS_S", 2.0)
    assert failed(lab) == "host1 is being switched by somebody else"
    assert redfish.told == [] and lab.netboots._by_mac == {}

    def ends(seconds: float) -> None:
        lab.store.write(lambda c: c.execute(table.update().where(table.c.actor == "ann").values(result="done")))

    monkeypatch.setattr(installing, "_OTHERS_S", 120.0)
    monkeypatch.setattr("evenkeel.lab.install.time.sleep", ends)
    install(lab)


@pytest.mark.long
def test_what_cannot_be_undone_does_not_keep_the_rest(
    lab: Lab, host: EmulatedMachine, redfish: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Redfish, "_boot_as", no_file_left)
    assert "it may still be set to boot from the network" in failed(lab)
    assert lab.netboots._by_mac == {}


@pytest.mark.long
def test_without_a_bmc_one_that_does_not_answer_is_started_by_its_outlet(lab: Lab, host: EmulatedMachine) -> None:
    host.fault("hung")
    (host.folder / "network-first").touch()
    assert failed(lab) == "it does not answer, and there is neither a BMC nor an outlet to start it by"
    firmware = (host.folder / "firmware").read_text()
    (host.folder / "firmware").write_text(firmware + "rm -f hung\n")
    pdu_endpoint(lab, host1(lab), host.start_outlet())
    assert "power cycle" in install(lab)[2]


@pytest.mark.parametrize(("first", "again"), [("c0", "0xc0 0x08 0x00 0x00 0x00"), ("80", "0x00 0x00 0x00 0x00 0x00")])
def test_ipmi_says_which_kind_of_boot_and_sets_again_what_is_for_all_boots(
    lab: Lab, host: EmulatedMachine, monkeypatch: pytest.MonkeyPatch, first: str, again: str
) -> None:
    """Boot flags of IPMI 2.0, table 28-14.  ipmi_sim keeps only the name of the device, so the words count here."""
    where, who = f"127.0.0.1:{host.bmc_port}", Credentials("admin", PASSWORD)
    bmc = Ipmi(Way("bmc", "ipmi", where, {"cipher": 3, "boot": "efi"}, who))
    sent: list[str] = []
    run = bmc.tool.run

    def heard(*words: str, deadline_s: float) -> str:
        sent.append(" ".join(words))
        said = run(*words, deadline_s=deadline_s)
        return said.replace("data: 0008", f"data: {first}08") if "get" in words else said

    monkeypatch.setattr(bmc.tool, "run", heard)
    run("chassis", "bootdev", "disk", deadline_s=60)
    usual = bmc.usual_boot(60)
    bmc.boot_from_network(60)
    assert sent[-2:] == ["raw 0x00 0x08 0x03 0x08", "chassis bootdev pxe options=efiboot"]
    assert "Force PXE" in run("chassis", "bootparam", "get", "5", deadline_s=60)
    sent.clear()
    usual(60)
    assert sent == [f"raw 0x00 0x08 0x05 {again}", "raw 0x00 0x08 0x03 0x00"]
    monkeypatch.setattr(bmc.tool, "run", lambda *words, deadline_s: "")  # what ipmitool says of a refusal is on stderr
    with pytest.raises(PowerFailed, match="refuses to boot from the network"):
        bmc.boot_from_network(60)


# -- a real iPXE -------------------------------------------------------------------------------------------------------

#: A boot sector that writes D to port E9h and stops: mov al, 'D'; out 0xe9, al; hlt; jmp back.
_DISK = bytes.fromhex("b044e6e9f4ebfd").ljust(510, b"\0") + b"\x55\xaa"


class Firmware:
    """QEMU's BIOS with the iPXE of its network card, which DHCP sends to the lab, and a disk to go on with."""

    def __init__(self, folder: Path, url: str) -> None:
        self.said = folder / "disk-said"
        (folder / "disk").write_bytes(_DISK.ljust(1 << 20, b"\0"))
        there = url.replace("127.0.0.1", "10.0.2.2")
        qemu = shutil.which("qemu-system-x86_64")
        assert qemu
        argv = [qemu, "-machine", "pc,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-serial", "none"]
        argv += ["-drive", f"file={folder}/disk,format=raw,if=ide", "-debugcon", f"file:{self.said}"]
        argv += ["-netdev", f"user,id=net,bootfile={there}/boot.ipxe"]
        argv += ["-device", f"virtio-net-pci,netdev=net,mac={MAC},bootindex=1"]
        self.process = subprocess.Popen([*argv, "-boot", "order=nc"], stdin=subprocess.DEVNULL)

    def booted_disk(self) -> bool:
        return self.said.exists() and self.said.read_bytes() == b"D"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.virtual
@pytest.mark.parametrize("offered", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_real_ipxe_asks_and_boots_what_it_is_told_then_its_disk(lab: Lab, tmp_path: Path, offered: bool) -> None:
    fetched: list[str] = []

    class Site(BaseHTTPRequestHandler):
        """Where the owner's script is: it fetches one thing more, and ends."""

        def do_GET(self) -> None:
            fetched.append(self.path)
            text = b"#!ipxe\nimgfetch system ||\nexit\n" if self.path == "/install.ipxe" else b"system"
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None: ...

    taken: list[str] = []
    with answering(Site) as port, serving(an_app(lab, who=lambda _: None)) as url:
        script = f"http://10.0.2.2:{port}/install.ipxe"
        offer = lab.netboots.make(script, [MAC], taken.append)
        assert offer is not None
        if offered:
            offer.open.set()
        machine = Firmware(tmp_path, url)
        try:
            until(machine.booted_disk)
        finally:
            machine.stop()
    assert fetched == (["/install.ipxe", "/system"] if offered else [])
    assert taken == ([MAC] if offered else [])
    assert offer.taken.is_set() is offered
