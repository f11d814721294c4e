"""The checks that only a watcher can make: they compare with what was there when watching began.  Texts only.

All other findings of a watcher are those of :mod:`evenkeel.verify.catalogue` and of the plan's settings.
"""

from __future__ import annotations

from evenkeel.verify.catalogue import Kind

OWNER = Kind(
    "W-OWNER",
    "setting",
    "No other program tunes this host",
    "two owners of one value undo each other; on a live cluster that cost the network (seapath/ansible#985)",
    "stop and mask it: systemctl mask --now; or make the plan anew, which does so itself: evenkeel plan",
)
PROFILE = Kind(
    "W-PROFILE",
    "setting",
    "TuneD's profile is the one it was",
    "TuneD writes sysctls, masks, interrupt affinities and boot arguments when its profile changes, over the plan's",
    "who ran tuned-adm? switch back, or stop TuneD: the plan has an owner for each of its values",
)
LINK = Kind(
    "W-LINK",
    "interrupt",
    "The network link is up, as it was",
    "nobody is reached over a link that is down, and many drivers set their interrupt affinities anew when it comes up",
    "look at the cable and the switch, and at who ran ip link; affinities are looked at again when it is up",
    severity="warning",
)
CANARY = Kind(
    "W-CANARY",
    "setting",
    "An operation that needs a turn on every CPU comes to its end",
    "a real-time thread that never lets go of its CPU, with throttling and fair server off, stops libvirt, systemd and "
    "memory compaction on the whole host, for as long as it spins",
    "with --repair live the fair server is back already; cure the guest or say trust: spins in the site, then run "
    "evenkeel apply again",
)
CATALOGUE = (OWNER, PROFILE, LINK, CANARY)
#: Of the daemons that the probe knows, those that write what a plan for isolated CPUs writes.  The others (thermald,
#: tlp) set frequencies, which some owners want.
RIVALS = ("irqbalance", "ksmtuned", "numad", "stalld", "tuned")
