"""The boot layer on a real Debian: kernels come and go before the reboot, and there is a way back in.

One host, one way through it: each reboot costs a minute, so the steps stand on each other.
"""

from __future__ import annotations

import pytest
from tests.virtual.before_after import BOOT_FILES, facts_of
from tests.virtual.conftest import on_host, running_host
from tests.virtual.tuned import SPEC, site

from evenkeel.apply import gate
from evenkeel.apply.engine import apply_plan
from evenkeel.apply.hosts import read_facts, read_values
from evenkeel.apply.rollback import rollback_host
from evenkeel.apply.steps import host_steps
from evenkeel.documents.plan import HostPlan
from evenkeel.machines.virtual import VirtualMachine
from evenkeel.plan import make_plan
from evenkeel.probe.steps.boot import grubcfg
from evenkeel.probe.steps.boot.arguments import missing

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(2400)]

KEYS = ("isolcpus", "nohz_full", "rcu_nocbs", "irqaffinity", "hugepages", "skew_tick")

#: A real package with a kernel in it, and what the maintainer scripts of Debian's kernels do: run the hooks.
NEW_KERNEL = """
version=6.99.0-evk-amd64
folder=$(mktemp -d)
mkdir -p $folder/DEBIAN $folder/boot
cp $(ls /boot/vmlinuz-*-amd64 | grep -v -e -rt-) $folder/boot/vmlinuz-$version
printf 'Package: linux-image-%s\\nVersion: 1\\nArchitecture: amd64\\nMaintainer: x <x@x.org>\\nDescription: x\\n' \\
    $version >$folder/DEBIAN/control
for what in postinst postrm; do
    printf '#!/bin/sh\\nset -e\\nexport INITRD=No\\nrun-parts --exit-on-error --arg=%s --arg=/boot/vmlinuz-%s %s\\n' \\
        $version $version /etc/kernel/$what.d >$folder/DEBIAN/$what
    chmod 755 $folder/DEBIAN/$what
done
dpkg-deb -Znone --build $folder /root/kernel.deb >/dev/null
"""


def gate_failures(machine: VirtualMachine, host: HostPlan) -> list[str]:
    with machine.probe() as probe:
        values = read_values(probe, gate.effective_paths(host))
        return [check.id for check in gate.check_boot(host, read_facts(probe), values) if check.status != "passed"]


def test_kernels_change_before_the_reboot_and_the_rescue_entry_starts_untuned() -> None:
    with running_host("boot", SPEC) as machine:
        plan = make_plan(site(machine.address), {"cell": facts_of(machine)})
        host = plan.hosts[0]
        boot_step = host_steps(host)[0].body
        arguments = boot_step["arguments"]
        untouched = on_host(machine, BOOT_FILES)
        started_with = on_host(machine, "cat /proc/cmdline")

        # there and back before any reboot: every byte
        assert apply_plan(host, plan, machine).outcome == "reboot_pending"
        assert on_host(machine, BOOT_FILES) != untouched
        assert rollback_host("cell", machine).problems == ()
        assert on_host(machine, BOOT_FILES) == untouched

        # one kernel comes and one goes between apply and reboot (rhboot/grubby#55)
        assert apply_plan(host, plan, machine).outcome == "reboot_pending"
        kernels = on_host(machine, "ls /boot/vmlinuz-*").split()
        standard = next(name for name in kernels if "-rt-" not in name).removeprefix("/boot/vmlinuz-")
        on_host(machine, NEW_KERNEL + f"dpkg -i /root/kernel.deb\ndpkg --force-depends --purge linux-image-{standard}")
        menu = on_host(machine, "cat /boot/grub/grub.cfg")
        tuned = {entry["kernel"]: entry["arguments"] for entry in grubcfg.entries(menu)}
        assert set(tuned) == {"6.99.0-evk-amd64", host.kernel_release}
        assert all(missing(arguments, line) == [] for line in tuned.values())
        rescue = {entry["kernel"]: entry["arguments"] for entry in grubcfg.rescue_entries(menu)}
        assert set(rescue) == set(tuned)
        assert not any(key in line for line in rescue.values() for key in KEYS)

        machine.reboot()
        assert gate_failures(machine, host) == []
        with machine.probe() as probe:
            assert probe.call("check_steps", steps=[boot_step])[0]["outcome"] == "unchanged"

        # the way back in: an ordinary boot without us, with the network up, for once
        on_host(machine, f"grub-reboot 'evenkeel-rescue>evenkeel-rescue-{host.kernel_release}'")
        machine.reboot()
        line = on_host(machine, "cat /proc/cmdline")
        assert line == f"{started_with} evenkeel.rescue"
        assert on_host(machine, "cat /sys/devices/system/cpu/isolated") == ""
        found = gate_failures(machine, host)
        assert found[0] == "GATE-ENTRY"
        assert {"H-ISO-1", "H-ISO-2"} <= set(found)
        assert on_host(machine, "dmesg | grep -c 'Unknown kernel command line.*evenkeel' || true") == "0"

        # from there everything is undone, for the kernels that came since too
        undone = rollback_host("cell", machine)
        assert undone.problems == ()
        assert not undone.reboot_needed
        menu = on_host(machine, "cat /boot/grub/grub.cfg")
        assert {entry["kernel"] for entry in grubcfg.entries(menu)} == set(tuned)
        assert not any(key in menu for key in (*KEYS, "evenkeel"))
        assert on_host(machine, "ls /etc/grub.d /etc/default/grub.d | grep -c evenkeel || true") == "0"

        _one_file_of_defaults(machine, boot_step)


def _one_file_of_defaults(machine: VirtualMachine, step: dict[str, object]) -> None:
    """The layout of SUSE with the real grub-mkconfig, on this disk: no update-grub, /boot/grub2, one file."""
    on_host(
        machine,
        "mv /usr/sbin/update-grub /root/; ln -s grub-mkconfig /usr/sbin/grub2-mkconfig; ln -s grub /boot/grub2\n"
        "printf 'GRUB_DISABLE_RECOVERY=true\\nGRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX nohz_full=1 splash=silent\"\\n' "
        ">>/etc/default/grub; grub2-mkconfig -o /boot/grub2/grub.cfg",
    )
    untouched = on_host(machine, BOOT_FILES)
    with machine.probe() as probe:
        menu = probe.call("boot_menu")
        assert menu["layout"] == "GRUB as on SUSE"
        assert all("nohz_full=1 splash=silent" in entry["arguments"] for entry in menu["entries"])
        assert probe.call("apply_step", step=step, plan_sha256="0" * 64, timeout_s=600)["outcome"] == "done"
        entries = probe.call("boot_menu")["entries"]
        assert len(entries) == len(menu["entries"])
        arguments = step["arguments"]
        assert isinstance(arguments, list)
        assert all(missing(arguments, entry["arguments"]) == [] for entry in entries)
        assert all("splash=silent" in entry["arguments"] for entry in entries)
        text = on_host(machine, "cat /boot/grub2/grub.cfg")
        assert not any(key in entry["arguments"] for entry in grubcfg.rescue_entries(text) for key in KEYS)
        sequence = probe.call("journal_read")["entries"][-1]["sequence"]
        probe.call("undo_step", sequence=sequence, timeout_s=600)
        probe.call("journal_note", event="end", plan_sha256="0" * 64)
    assert on_host(machine, BOOT_FILES) == untouched
