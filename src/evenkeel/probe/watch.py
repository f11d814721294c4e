"""Wait for what may change how a machine is tuned: the operation `watch`, called again and again.

Each call returns as soon as something happened, or empty-handed after ``within_s``; what happens between two calls
waits in the queues of the kernel.  So one conversation can watch, look closer and repair in turn, and a controlling
side that went away is noticed within a second.  Everything is held by this process and gone with it.

Must not write anything, and must not judge: which event is a drift is decided by `evenkeel.watch`.

Events, each with ``at``, the seconds since 1970 by this machine's clock when it was noticed:

    start      owners, profile: how it was when watching began
    cpu        cpu, online
    device     action, subsystem, name
    link       name, up, gone; first: how it was when it was asked for
    partition  path, state: what cpuset.cpus.partition reads now; None: gone with its guest
    guest      name, what: "definition" (libvirt wrote its files) or "threads"
    interrupts rows, seconds: what fired on the CPUs that must be quiet, as the operation `interrupts` gives it
    owner      name, running
    profile    profile, before: of TuneD
    lost       source: so much happened that the kernel dropped events; look at everything
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from typing import Any, Sequence

from evenkeel.probe import sample, watch_inotify, watch_netlink, watch_tick

_LIBVIRT = ("/etc/libvirt/qemu", "/run/libvirt/qemu")
_TUNED = os.path.dirname(watch_tick.PROFILE)
_CGROUPS = "/sys/fs/cgroup/"

_watcher: Watcher | None = None


def watch(
    partitions: Sequence[str] = (),
    guests: Sequence[str] = (),
    cpus: Sequence[int] = (),
    links: Sequence[str] = (),
    within_s: float = 1.0,
    interval_s: float = 1.0,
) -> dict[str, Any]:
    """Operation: ``{"events": [...], "at": now}``.

    ``partitions``: folders of cgroups, ``cpus``: those where no device may interrupt, ``links``: network interfaces.
    They may differ from call to call.  ``interval_s``: between two looks at what no event tells.
    Raises OSError where the kernel refuses a source, EINVAL for a folder that is no cgroup.
    """
    global _watcher
    for path in partitions:
        if not path.startswith(_CGROUPS) or ".." in path.split("/"):
            raise OSError(22, "%r is not the folder of a cgroup" % path)
    if _watcher is None:
        _watcher = Watcher()
    _watcher.configure(partitions, guests, cpus, links, interval_s)
    return {"events": _watcher.wait(within_s), "at": round(time.time(), 6)}


def close() -> None:
    """Let go of every source.  The end of the process does the same."""
    global _watcher
    if _watcher is not None:
        _watcher.close()
        _watcher = None


class Watcher:
    """Every source of events of one machine."""

    def __init__(self) -> None:
        self._inotify = watch_inotify.Inotify()
        self._uevents: socket.socket | None = None
        self._routes: socket.socket | None = None
        try:
            self._uevents = watch_netlink.listen(watch_netlink.UEVENT)
            self._routes = watch_netlink.listen(watch_netlink.ROUTE)
        except OSError:
            self.close()
            raise
        self._interrupts, self._threads = watch_tick.Interrupts(), watch_tick.Guests()
        self._owners = watch_tick.Owners()
        self._links: dict[str, bool] = {}
        self._states: dict[str, str | None] = {}
        self._next_tick = 0.0
        self._started = False
        self._poll = select.poll()
        for descriptor in (self._inotify.descriptor, self._uevents.fileno(), self._routes.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        self._hangup = _hangup_descriptor()
        if self._hangup is not None:
            self._poll.register(self._hangup, select.POLLRDHUP)  # POLLHUP comes unasked

    def configure(
        self,
        partitions: Sequence[str],
        guests: Sequence[str],
        cpus: Sequence[int],
        links: Sequence[str],
        interval_s: float,
    ) -> None:
        self._partitions, self._guests, self._cpus = list(partitions), list(guests), list(cpus)
        self._wanted_links, self._interval_s = set(links), interval_s
        self._watch_files()

    def _watch_files(self) -> None:
        wanted = {folder + "/cpuset.cpus.partition": watch_inotify.MODIFY for folder in self._partitions}
        wanted.update(dict.fromkeys((*_LIBVIRT, _TUNED), watch_inotify.FOLDER))
        self._inotify.keep(wanted)
        files = [path for path in wanted if path.startswith(_CGROUPS)]
        self._states = {path: self._states.get(path, _state(path)) for path in files}

    def wait(self, within_s: float) -> list[dict[str, Any]]:
        """Events, at least one unless ``within_s`` is over or the other side went away."""
        deadline = time.monotonic() + within_s
        while True:
            events = self._start() if not self._started else []
            events += self._new_links() + self._received()
            now = time.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + self._interval_s
                events += self._tick()
            if events or now >= deadline:
                return events
            ready = self._poll.poll(max(0.0, min(deadline, self._next_tick) - now) * 1000)
            if any(descriptor == self._hangup for descriptor, _ in ready):
                return []  # nobody reads the answer, which ends the probe

    def _start(self) -> list[dict[str, Any]]:
        self._started = True
        self._owners.look()
        self._interrupts.look(self._cpus)
        self._threads.look(self._guests)
        self._next_tick = time.monotonic() + self._interval_s
        return [_event({"kind": "start", "owners": sorted(self._owners.running), "profile": self._owners.profile})]

    def _received(self) -> list[dict[str, Any]]:
        assert self._uevents is not None and self._routes is not None
        events: list[dict[str, Any]] = []
        messages, lost = watch_netlink.receive(self._uevents)
        for message in messages:
            parsed = watch_netlink.parse_uevent(message)
            event = watch_netlink.cpu_or_device(parsed) if parsed else None
            if event is not None:
                events.append(_event(event))
        if lost:
            events.append(_event({"kind": "lost", "source": "uevents"}))
        messages, lost = watch_netlink.receive(self._routes)
        for message in messages:
            for link in watch_netlink.parse_links(message):
                events += self._link(link["name"], link["up"], link["gone"])
        if lost:
            events.append(_event({"kind": "lost", "source": "links"}))
            for name in sorted(self._wanted_links):
                events += self._link(name, _is_up(name), False)
        return events + self._files()

    def _new_links(self) -> list[dict[str, Any]]:
        events = []
        for name in sorted(self._wanted_links - self._links.keys()):
            self._links[name] = _is_up(name)
            event = {"kind": "link", "name": name, "up": self._links[name], "gone": False, "first": True}
            events.append(_event(event))
        return events

    def _link(self, name: str, up: bool, gone: bool) -> list[dict[str, Any]]:
        """A message that tells what is known already (statistics, addresses) is no event."""
        if name not in self._wanted_links or (self._links.get(name) == up and not gone):
            return []
        self._links[name] = up
        return [_event({"kind": "link", "name": name, "up": up, "gone": gone, "first": False})]

    def _files(self) -> list[dict[str, Any]]:
        """Several changes of one file until we come to read it are one event."""
        events: dict[Any, dict[str, Any]] = {}
        for happened in self._inotify.receive():
            if happened.mask & watch_inotify.OVERFLOW:
                events["lost"] = {"kind": "lost", "source": "files"}
            elif happened.path in self._states:
                event = self._partition(happened.path)
                if event:
                    events[happened.path] = event
            elif happened.path in _LIBVIRT:
                guest = happened.name.rpartition(".")[0]
                if guest in self._guests and happened.name.endswith((".xml", ".pid")):
                    events["guest", guest] = {"kind": "guest", "name": guest, "what": "definition"}
            elif happened.path == _TUNED and happened.name == os.path.basename(watch_tick.PROFILE):
                for event in self._owners.look():
                    events[event["kind"], event.get("name")] = event
        return [_event(event) for event in events.values()]

    def _partition(self, path: str) -> dict[str, Any] | None:
        state = _state(path)
        if state == self._states.get(path):
            return None
        self._states[path] = state
        return {"kind": "partition", "path": os.path.dirname(path), "state": state}

    def _tick(self) -> list[dict[str, Any]]:
        self._watch_files()  # folders that were not there before, and partitions that were removed
        events = [{"kind": "guest", "name": guest, "what": "threads"} for guest in self._threads.look(self._guests)]
        events += [event for event in map(self._partition, self._states) if event]
        fired = self._interrupts.look(self._cpus) if self._cpus else None
        if fired:
            events.append(fired)
        return [_event(event) for event in events + self._owners.look()]

    def close(self) -> None:
        self._inotify.close()
        for listener in (self._uevents, self._routes):
            if listener is not None:
                listener.close()


def _event(event: dict[str, Any]) -> dict[str, Any]:
    return dict(event, at=round(time.time(), 6))


def _state(path: str) -> str | None:
    text = sample.read(path)
    return text.strip() if text is not None else None


def _is_up(name: str) -> bool:
    """As a message of the kernel would tell it.  ``flags`` in sysfs lacks IFF_LOWER_UP; ``carrier`` has it."""
    flags = (sample.read("/sys/class/net/%s/flags" % name) or "0").strip()
    carrier = (sample.read("/sys/class/net/%s/carrier" % name) or "0").strip()  # EINVAL while it is switched off
    return bool(int(flags, 16) & 1) and carrier == "1"


def _hangup_descriptor() -> int | None:
    """Our stdin, where it is a pipe or socket that the other side can close."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    return 0 if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
