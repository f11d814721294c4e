"""A whole installation from an image: a BMC of others (sushy-emulator over libvirt), an ISO that a BIOS boots, sshd.

The machine has an empty disk.  Its BMC fetches the ISO from its owner's server and puts it into a virtual drive; the
system in it runs from memory.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from evenkeel.errors import NotAsWanted
from evenkeel.lab import power
from evenkeel.lab.install import Installing
from evenkeel.lab.lab import Lab
from evenkeel.lab.prepare import Job
from evenkeel.machines.virtual.run import tool
from tests.lab.domain import BARE, POLICY, UUIDS, Domain, bios_kernel, boot_files, define_bare, domain
from tests.lab.emulated import add_endpoint, add_machine
from tests.lab.emulators import redfish
from tests.lab.serving import answering
from tests.lab.test_media import Then
from tests.lab.test_power import ANN

pytestmark = [pytest.mark.long, pytest.mark.virtual]
#: A boot from the drive, with software emulation on a busy machine.
_BOOT_S = 300.0
#: Of its disk, which is empty, so all of it is waited for.
_DISK_S = 60.0
_MENU = """default it
label it
  kernel vmlinuz
  append initrd=initrd.img console=ttyS0 panic=10
"""


@dataclass
class Site:
    """``machine``: libvirt with the bare one; ``bmc``: its URL; ``folder``: what its owner's server at ``url`` has."""

    machine: Domain
    bmc: str
    folder: Path
    url: str
    port: int


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with domain() as machine:
        port = define_bare(machine)
        boot_files(folder, port)
        iso(folder)
        pool = machine.folder / "pool"  # where sushy-emulator keeps what is in drives
        pool.mkdir()
        pool.chmod(0o777)
        machine.virsh("pool-create-as", "default", "dir", "--target", str(pool))
        with (
            redfish(machine.folder, "127.0.0.1", "--libvirt-uri", machine.uri) as (bmc, _),
            answering(partial(SimpleHTTPRequestHandler, directory=str(folder))) as web,
        ):
            yield Site(machine, bmc, folder, f"http://127.0.0.1:{web}", port)


def iso(folder: Path) -> None:
    """``host.iso``: kernel and initrd of the small guest, which a BIOS boots."""
    tree = folder / "tree"
    tree.mkdir()
    bios_kernel(tree / "vmlinuz")
    shutil.copy(folder / "initrd.img", tree)
    shutil.copy("/usr/lib/ISOLINUX/isolinux.bin", tree)
    shutil.copy("/usr/lib/syslinux/modules/bios/ldlinux.c32", tree)
    (tree / "isolinux.cfg").write_text(_MENU)
    bootable = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    made = [tool("xorriso"), "-as", "mkisofs", "-quiet", *bootable, "-o", str(folder / "host.iso"), str(tree)]
    subprocess.run(made, check=True, capture_output=True)


@pytest.fixture
def host(lab: Lab, site: Site) -> Iterator[Site]:
    """host1 of the pool, off."""
    add_machine(lab, policy={"power": POLICY | {"bmc_s": 60.0, "boot_s": _DISK_S}})
    add_endpoint(lab, "host1", "bmc", "redfish", site.bmc, system=f"/redfish/v1/Systems/{UUIDS[BARE]}")
    keys = {key: str(site.folder / file) for key, file in (("identity", "user"), ("known_hosts", "known_hosts"))}
    add_endpoint(lab, "host1", "ssh", "ssh", f"ssh://root@127.0.0.1:{site.port}", **keys)
    yield site
    if site.machine.state(BARE) != "shut off":
        site.machine.virsh("destroy", BARE)


def install(lab: Lab, site: Site, name: str, *, system_of: str = "") -> list[str]:
    """What was said meanwhile."""
    said: list[str] = []
    image = f"{site.url}/{name}"
    job = Job("host1", "host1", "ssh://root@host1", "full", image, install_s=_BOOT_S, system_of=system_of)
    assert Installing(lab, Then()).prepare(job, said.append).anew
    return said


def test_a_bare_machine_is_installed_from_an_image_then_booted_by_a_holder_and_then_anew(lab: Lab, host: Site) -> None:
    said = install(lab, host, "host.iso")
    assert said[0].startswith("it does not answer now") and "power on" in said[2]
    assert "cdrom" not in host.machine.virsh("dumpxml", "--inactive", BARE)
    install(lab, host, "host.iso", system_of="ann")
    newest = power.history(lab, ANN, "host1").items[0]
    assert (newest.action, newest.result) == ("cycle", "done")
    said = install(lab, host, "host.iso")  # of its disk nothing is known by now, and it is empty
    assert said[2] == "its disk boots nothing that answers, so what does after its installation is new"


def test_an_image_that_is_not_there_switches_nothing(lab: Lab, host: Site) -> None:
    with pytest.raises(NotAsWanted) as caught:
        install(lab, host, "no.iso")
    assert caught.value.message.startswith("inserting the image: BMC 127.0.0.1")
    assert host.machine.state(BARE) == "shut off" and power.history(lab, ANN, "host1").items == ()
