"""What keeps a site from being planned on its hosts, before anything is placed.

Each check adds problems and decides nothing.  Sites are checked for themselves in :mod:`evenkeel.plan.sitefile`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.site import GuestWish, Site
from evenkeel.plan.cells import wrong_cells
from evenkeel.plan.guest import MACHINES
from evenkeel.plan.levels import too_weak
from evenkeel.plan.problems import Problems, did_you_mean
from evenkeel.plan.rules.kvm import polls_idle

_RT = re.compile(r"(?:^|[-+.])(?:preempt[-_]?)?rt\d*(?:[-+.]|$)", re.IGNORECASE)


def assign_hosts(site: Site, problems: Problems) -> dict[str, dict[str, GuestWish]]:
    """Host -> its guests.  A guest that names no host belongs to the only one."""
    found: dict[str, dict[str, GuestWish]] = {host: {} for host in sorted(site.hosts)}
    for name, guest in sorted(site.guests.items()):
        host = guest.host
        if host is None:
            if len(site.hosts) != 1:
                problems.add(
                    f"guest {name}", "names no host, and the site has several", f"write host: {min(site.hosts)}"
                )
                continue
            host = next(iter(site.hosts))
        if host not in site.hosts:
            problems.add(f"guest {name}", f"its host {host} is not in the site", did_you_mean(host, site.hosts))
            continue
        found[host][name] = guest
    return found


def check_facts(site: Site, facts: Mapping[str, Facts], problems: Problems) -> None:
    """Each host has facts, and the facts are of the site's hosts."""
    for host, wish in sorted(site.hosts.items()):
        if host not in facts:
            problems.add(
                f"host {host}", "there are no facts of it", f"evenkeel facts {wish.address} --json > {host}.facts.json"
            )
        elif not facts[host].online:
            problems.add(f"host {host}", "its facts show no CPU", "read them again, from the machine itself")
    for host in sorted(facts.keys() - site.hosts.keys()):
        problems.add(
            f"host {host}", "there are facts of it, but the site does not have it", did_you_mean(host, site.hosts)
        )


def check_host(host: str, facts: Facts, guests: Mapping[str, GuestWish], problems: Problems) -> None:
    """Whether this machine can run guests at all, and real-time ones in particular."""
    if not guests:
        return
    about = f"host {host}"
    missing = [name for name in ("libvirt", "qemu") if name not in facts.programs]
    if missing:
        problems.add(
            about,
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and guests are wanted "
            "there",
            "Debian: apt-get install libvirt-daemon-system libvirt-daemon-driver-qemu qemu-system-x86",
        )
    if facts.kvm_usable is False:
        problems.add(
            about,
            "KVM cannot be used: /dev/kvm is missing or its module is not loaded",
            "switch virtualisation on in the firmware, and load kvm_intel or kvm_amd",
        )
    urgent = [name for name, guest in sorted(guests.items()) if guest.goal == "realtime"]
    if urgent and not facts.kernel.preempt_rt:
        problems.add(
            about,
            f"guest {', '.join(urgent)} has goal realtime, but the kernel {facts.kernel.release} is not PREEMPT_RT",
            _boot_rt(facts),
        )


def _boot_rt(facts: Facts) -> str:
    installed = [release for release in facts.kernel.installed if _RT.search(release)]
    if not installed:
        return "install a PREEMPT_RT kernel (Debian: linux-image-rt-amd64) and boot it"
    newest = max(installed, key=lambda release: [int(part) for part in re.findall(r"\d+", release)])
    how = {
        "grub": f'grub-reboot "Advanced options>...{newest}" for once, or GRUB_DEFAULT in /etc/default/grub for good',
        "bls": f"grubby --set-default /boot/vmlinuz-{newest}",
        "systemd-boot": f"bootctl set-default with the entry of {newest}",
    }.get(facts.kernel.boot_loader or "", "choose it in the boot menu")
    return f"{newest} is installed; boot it: {how}"


def check_guest(name: str, host: str, wish: GuestWish, facts: Facts, problems: Problems) -> None:
    """Whether one guest makes sense on this machine."""
    about = f"guest {name}"
    machine = facts.identity.architecture
    if wish.architecture != machine:
        problems.add(
            about,
            f"its architecture is {wish.architecture}, host {host} is {machine}",
            "emulating another architecture meets no deadline; use a host of the guest's own",
        )
    elif wish.architecture not in MACHINES:
        problems.add(
            about,
            f"Evenkeel writes no definitions for {wish.architecture} guests",
            f"it does for {', '.join(sorted(MACHINES))}",
        )
    if weak := too_weak(wish):
        problems.add(about, *weak)
    if wish.realtime_vcpus is not None:
        if wish.goal != "realtime":
            problems.add(
                about, f"realtime_vcpus means nothing with goal {wish.goal}", "take goal realtime, or leave it out"
            )
        elif extra := wish.realtime_vcpus - frozenset(range(wish.vcpus)):
            problems.add(
                about,
                f"realtime_vcpus names vCPU {format_cpus(extra)}, but it has {wish.vcpus}, counted from 0",
                f"write {format_cpus(range(1, wish.vcpus)) or '0'}",
            )
        elif not wish.realtime_vcpus:
            problems.add(about, "realtime_vcpus is empty", "leave it out, or take goal performance")
    if wish.l3 is not None and wish.goal != "realtime":
        problems.add(
            about, f"l3 means nothing with goal {wish.goal}: it shares the cache", "take goal realtime, or leave it out"
        )
    if wrong := wrong_cells(wish):
        problems.add(about, *wrong[1:])
    if wish.memory % (1 << 20):
        problems.add(about, f"memory of {wish.memory} bytes is no whole number of MiB", "write it in MiB or GiB")
    if wish.boot is None and not wish.disks and not any(network.bridge or network.network for network in wish.networks):
        problems.add(about, "nothing to start from", "give it `boot` (a kernel), `disks`, or a network to boot from")
    if wish.boot and wish.goal == "realtime" and wish.trust == "yields" and polls_idle(wish.boot.arguments):
        problems.add(
            about,
            "trust is yields, but idle=poll in its arguments means that its CPU never goes idle",
            "write trust: spins, or take idle=poll out",
        )
