"""Health of machines: asked every few minutes over IPv4, IPv6, ssh, log-in, BMC, outlet and console; kept, rolled up.

One probe that fails is chance; two in a row are an event, and a machine in the pool that nobody can log in to three
times in a row becomes suspect.  A dead management module of an enclosure is told once, not for each blade.
Asks and keeps; switches nothing (:mod:`evenkeel.lab.energy` does).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI
from sqlalchemy import Connection, Integer, Row, cast, delete, func, insert, select

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError
from evenkeel.lab import energy, machines, power, schema, touch
from evenkeel.lab.actor import SERVICE, Actor
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Driver, PowerFailed, driver_for
from evenkeel.lab.power_drivers.ssh import Ssh
from evenkeel.lab.store import Away, StoreClosed

Probe = Literal["v4", "v6", "ssh", "login", "bmc", "pdu", "console"]
PROBES: tuple[Probe, ...] = ("v4", "v6", "ssh", "login", "bmc", "pdu", "console")
HOUR_NS = 3600 * 10**9
#: Single probes are kept so long, hours for ever.
DETAIL_NS = 12 * HOUR_NS
#: Failures in a row that are an event, and that make a machine suspect.
_DOWN, _SUSPECT = 2, 3
_SUSPECT_REASON = "health: nobody can log in"
_AT_ONCE = 32
_DEADLINE_S, _LOGIN_S = 3.0, 10.0


class Probed(Model):
    """``latency_ns``: until it answered; ``detail``: what it said, or why it did not."""

    probe: str
    ok: bool
    at_ns: int
    latency_ns: int | None
    detail: str


class MachineHealth(Model):
    """``well``: the last probe of every kind was answered; None: never asked."""

    machine: str
    state: str
    owner: str
    well: bool | None
    probes: tuple[Probed, ...]


class Hour(Model):
    """Of one kind of probe.  ``latency_ns``: mean of those that were answered."""

    hour_ns: int
    probe: str
    asked: int
    ok: int
    latency_ns: int | None


# -- asking a machine -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    probe: Probe
    ok: bool
    latency_ns: int | None
    detail: str


def look(lab: Lab, machine_id: str) -> list[Probed]:
    """Ask a machine now, in this thread: some seconds when it is dead; keep what it said, and tell what changed."""
    with lab.store.read() as connection:
        machine = touch.find(connection, machine_id)
        table = schema.endpoint
        rows = connection.execute(select(table).where(table.c.machine_id == machine.id).order_by(table.c.id)).all()
    found: list[_Found] = []
    watts: tuple[float, str] | None = None
    for row in rows:
        try:
            if row.kind == "ssh":
                found += _ask_ssh(lab, row)
            elif row.kind in ("bmc", "pdu"):
                driver = driver_for(power.way_of(lab, row))
                found.append(_timed(row.kind, lambda driver=driver: f"power {driver.status(5.0)}"))  # type: ignore[misc]
                if row.kind == "bmc" and found[-1].ok:
                    watts = _watts(driver, row.driver)
        except EvenkeelError as error:
            found.append(_Found("login" if row.kind == "ssh" else row.kind, False, None, error.message))
    if lab.consoles is not None and any(row.kind == "console" or row.driver == "virtual" for row in rows):
        found += _ask_console(lab, machine.id)
    return _keep(lab, machine, found, watts)


def check(lab: Lab, machine_id: str) -> str | None:
    """Before a machine is offered: why it is not well, or None.  A BMC that is silent is no reason, log-in is."""
    return next(
        (f"{one.probe}: {one.detail}" for one in look(lab, machine_id) if one.probe == "login" and not one.ok), None
    )


def _ask_ssh(lab: Lab, row: Row[Any]) -> list[_Found]:
    ssh = Ssh(power.way_of(lab, row))
    found: list[_Found] = []
    target = ssh.target()
    port = target.port or 22
    if not row.address.startswith("virtual:"):
        for probe, family in (("v4", socket.AF_INET), ("v6", socket.AF_INET6)):
            with contextlib.suppress(socket.gaierror):
                address = socket.getaddrinfo(target.host, port, family, socket.SOCK_STREAM)[0][4]
                found.append(_timed(probe, lambda family=family, address=address: _reach(family, address)))  # type: ignore[arg-type,misc]
    found.append(_timed("ssh", lambda: _banner(target.host, port)))

    def boot() -> str:
        here = ssh.boot(_LOGIN_S)
        return f"boot {here.id[:8]}, up {here.uptime_s:.0f} s, load {here.load:.2f}"

    found.append(_timed("login", boot))
    return found


def _timed(probe: Probe, ask: Callable[[], str]) -> _Found:
    start = time.monotonic()
    try:
        detail = ask()
    except (OSError, EvenkeelError) as error:
        why = error.message if isinstance(error, EvenkeelError) else error.strerror or "no answer"
        return _Found(probe, False, None, why[:300])
    return _Found(probe, True, round((time.monotonic() - start) * 1e9), detail)


def _reach(family: int, address: Any) -> str:
    """ICMP echo where this process may, else a TCP connection, of which a refusal is an answer too."""
    try:
        return _echo(family, address)
    except PermissionError:
        with contextlib.suppress(ConnectionRefusedError), socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(_DEADLINE_S)
            client.connect(address)
        return "TCP"


def _echo(family: int, address: Any) -> str:
    protocol, kind = (socket.IPPROTO_ICMP, 8) if family == socket.AF_INET else (socket.IPPROTO_ICMPV6, 128)
    # Ping sockets (icmp(7), net.ipv4.ping_group_range): the kernel fills in identifier and check sum.
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as client:
        client.settimeout(_DEADLINE_S)
        client.connect((address[0], 0, *address[2:]))
        client.send(struct.pack("!BBHHH", kind, 0, 0, 0, 1) + os.urandom(16))
        client.recv(1024)
    return "ICMP"


def _banner(host: str, port: int) -> str:
    with socket.create_connection((host, port), _DEADLINE_S) as client:
        said = client.recv(255).split(b"\r\n")[0].decode(errors="replace")
    if not said.startswith("SSH-"):
        raise PowerFailed(f"port {port} says {said[:60]!r}, which is not ssh")
    return said[:100]


def _ask_console(lab: Lab, machine_id: str) -> list[_Found]:
    from evenkeel.lab import console

    try:
        state = console.state(lab, SERVICE, machine_id)
    except EvenkeelError as error:
        return [_Found("console", False, None, error.message)]
    return [_Found("console", state.line == "up", None, state.why or "up")]


def _watts(driver: Driver, name: str) -> tuple[float, str] | None:
    try:
        watts = driver.watts(5.0)
    except EvenkeelError:
        return None
    return None if watts is None else (watts, name)


# -- what is kept ---------------------------------------------------------------------------------------------------


def _keep(lab: Lab, machine: touch.Touched, found: Sequence[_Found], watts: tuple[float, str] | None) -> list[Probed]:
    at_ns = lab.now()

    def change(connection: Connection) -> list[Probed]:
        kept = []
        for one in found:
            detail = one.detail
            module = "" if one.ok or one.probe != "bmc" else _dead_module(connection, machine)
            if module:
                detail = f"the management module of {module} is dead"
            before = _last(connection, machine.id, one.probe, _SUSPECT)
            if not before or before[0].at_ns < at_ns:
                row = {"machine_id": machine.id, "probe": one.probe, "at_ns": at_ns, "ok": one.ok}
                row |= {"latency_ns": one.latency_ns, "detail": detail}
                connection.execute(insert(schema.health).values(row))
                if not module:
                    _tell(lab, connection, machine, one, [row.ok for row in before])
                if one.probe == "login":
                    _judge(lab, connection, machine, [one.ok, *(row.ok for row in before)])
            kept.append(Probed(probe=one.probe, ok=one.ok, at_ns=at_ns, latency_ns=one.latency_ns, detail=detail))
        _tell_lies(lab, connection, machine, found)
        if watts is not None:
            energy.keep_reading(lab, connection, machine.id, *watts)
        return kept

    return lab.store.write(change)


def _last(connection: Connection, machine_id: str, probe: str, count: int) -> list[Row[Any]]:
    table = schema.health
    here = (table.c.machine_id == machine_id) & (table.c.probe == probe)
    asked = select(table.c.ok, table.c.at_ns, table.c.detail).where(here).order_by(table.c.at_ns.desc()).limit(count)
    return list(connection.execute(asked))


def _tell(lab: Lab, connection: Connection, machine: touch.Touched, one: _Found, before: list[bool]) -> None:
    """An event at the second failure in a row, and one when that is over."""
    failed = next((n for n, ok in enumerate(before) if ok), len(before))
    told = {"name": machine.name, "probe": one.probe, "detail": one.detail}
    if not one.ok and failed == _DOWN - 1:
        lab.store.event(connection, SERVICE.name, "health.down", "machine", machine.id, **told)
    elif one.ok and failed >= _DOWN:
        lab.store.event(connection, SERVICE.name, "health.up", "machine", machine.id, **told)


def _judge(lab: Lab, connection: Connection, machine: touch.Touched, logins: list[bool]) -> None:
    """Suspect after three failures; ready again after two log-ins, for it is checked before anybody gets it."""
    table = schema.machine.c
    asked = select(table.state, table.state_reason, table.system_of).where(table.id == machine.id)
    row = connection.execute(asked).one()
    # What a holder booted may let nobody in, or have left no system: it is installed before anybody has it.
    silent = len(logins) > _SUSPECT - 1 and not any(logins[:_SUSPECT]) and not row.system_of
    if row.state == "ready" and silent:
        machines.set_state(lab, connection, SERVICE.name, machine.id, "suspect", _SUSPECT_REASON)
    elif row.state == "suspect" and row.state_reason == _SUSPECT_REASON and len(logins) > 1 and all(logins[:2]):
        machines.set_state(lab, connection, SERVICE.name, machine.id, "ready")


def _dead_module(connection: Connection, machine: touch.Touched) -> str:
    """Name of the enclosure whose management module did not answer the last time; "" when that is not why."""
    if machine.enclosure_id is None:
        return ""
    last = _last(connection, machine.enclosure_id, "bmc", 1)
    if not last or last[0].ok:
        return ""
    return touch.find(connection, machine.enclosure_id).name


def _tell_lies(lab: Lab, connection: Connection, machine: touch.Touched, found: Sequence[_Found]) -> None:
    """A BMC that says off while somebody could log in: told when it begins and ends, like a probe that fails."""
    if not any(one.ok for one in found if one.probe == "login"):
        return  # it cannot be seen
    liars = power.caught(connection, machine.id)
    for one in found:
        if one.probe not in ("bmc", "pdu") or one.detail not in ("power on", "power off"):
            continue
        lies = one.detail == "power off"
        if lies is (one.probe in liars):
            continue
        told = {"name": machine.name, "method": one.probe, "detail": f"it says {one.detail}, and we can log in"}
        kind = "power.lied" if lies else "power.honest"
        lab.store.event(connection, SERVICE.name, kind, "machine", machine.id, **told)


def roll_up(lab: Lab) -> int:
    """Fold single probes that are old into hours; returns how many.  Killed at any moment it loses and doubles none."""
    table, hours = schema.health, schema.health_hour
    before_ns = (lab.now() - DETAIL_NS) // HOUR_NS * HOUR_NS

    def change(connection: Connection) -> int:
        hour = (cast(table.c.at_ns / HOUR_NS, Integer) * HOUR_NS).label("hour_ns")
        if connection.dialect.name != "sqlite":
            hour = (func.div(table.c.at_ns, HOUR_NS) * HOUR_NS).label("hour_ns")
        rolled = (
            select(
                table.c.machine_id,
                table.c.probe,
                hour,
                func.count().label("asked"),
                func.sum(cast(table.c.ok, Integer)).label("ok"),
                func.avg(table.c.latency_ns).label("latency_ns"),
            )
            .where(table.c.at_ns < before_ns)
            .group_by(table.c.machine_id, table.c.probe, hour)
        )
        rows = connection.execute(rolled).all()
        for row in rows:
            latency = None if row.latency_ns is None else round(row.latency_ns)
            connection.execute(
                insert(hours).values(
                    machine_id=row.machine_id,
                    probe=row.probe,
                    hour_ns=int(row.hour_ns),
                    asked=row.asked,
                    ok=row.ok,
                    latency_ns=latency,
                )
            )
        return connection.execute(delete(table).where(table.c.at_ns < before_ns)).rowcount if rows else 0

    return lab.store.write(change)


# -- asking the lab -------------------------------------------------------------------------------------------------


def overview(lab: Lab, actor: Actor) -> list[MachineHealth]:
    """All machines but retired ones, those that are not well first.  Raises Forbidden."""
    actor.need("read", "see the health of machines")
    with lab.store.read() as connection:
        rows = connection.execute(select(schema.machine).where(schema.machine.c.state != "retired")).all()
        last = _latest(connection)
    found = [_health(row, last.get(row.id, [])) for row in rows]
    return sorted(found, key=lambda one: (one.well is not False, one.well is None, one.machine))


def show(lab: Lab, actor: Actor, machine: str) -> MachineHealth:
    """The last probe of every kind.  Raises NotFound, Forbidden."""
    actor.need("read", "see the health of machines")
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
        row = connection.execute(select(schema.machine).where(schema.machine.c.id == found.id)).one()
        last = _latest(connection, found.id)
    return _health(row, last.get(found.id, []))


def ask(lab: Lab, actor: Actor, machine: str) -> MachineHealth:
    """Ask a machine now, out of turn.  Raises NotFound, Forbidden."""
    actor.need("read", "see the health of machines")
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
    look(lab, found.id)
    return show(lab, actor, machine)


def history(lab: Lab, actor: Actor, machine: str, since_ns: int, until_ns: int | None = None) -> list[Hour]:
    """By hour and probe, oldest first.  Raises NotFound, Forbidden."""
    actor.need("read", "see the health of machines")
    until_ns = lab.now() if until_ns is None else until_ns
    hours, table = schema.health_hour, schema.health
    totals: dict[tuple[int, str], list[int]] = {}
    with lab.store.read() as connection:
        found = touch.find(connection, machine)
        within = (hours.c.machine_id == found.id) & hours.c.hour_ns.between(since_ns // HOUR_NS * HOUR_NS, until_ns)
        for row in connection.execute(select(hours).where(within)):
            totals[row.hour_ns, row.probe] = [row.asked, row.ok, (row.latency_ns or 0) * row.ok]
        within = (table.c.machine_id == found.id) & table.c.at_ns.between(since_ns, until_ns)
        for row in connection.execute(select(table).where(within)):
            total = totals.setdefault((row.at_ns // HOUR_NS * HOUR_NS, row.probe), [0, 0, 0])
            total[0] += 1
            total[1] += row.ok
            total[2] += row.latency_ns or 0
    return [
        Hour(hour_ns=at, probe=probe, asked=asked, ok=ok, latency_ns=latency // ok if ok and latency else None)
        for (at, probe), (asked, ok, latency) in sorted(totals.items())
    ]


def _latest(connection: Connection, machine_id: str | None = None) -> dict[str, list[Probed]]:
    table = schema.health
    last = select(table.c.machine_id, table.c.probe, func.max(table.c.at_ns).label("at_ns"))
    if machine_id is not None:
        last = last.where(table.c.machine_id == machine_id)
    newest = last.group_by(table.c.machine_id, table.c.probe).subquery()
    same = (table.c.machine_id == newest.c.machine_id) & (table.c.probe == newest.c.probe)
    found: dict[str, list[Probed]] = {}
    for row in connection.execute(select(table).join(newest, same & (table.c.at_ns == newest.c.at_ns))):
        probed = Probed(probe=row.probe, ok=row.ok, at_ns=row.at_ns, latency_ns=row.latency_ns, detail=row.detail)
        found.setdefault(row.machine_id, []).append(probed)
    return found


def _health(row: Row[Any], probes: list[Probed]) -> MachineHealth:
    ordered = sorted(probes, key=lambda one: PROBES.index(one.probe) if one.probe in PROBES else 99)
    well = all(one.ok for one in ordered) if ordered else None
    return MachineHealth(machine=row.name, state=row.state, owner=row.owner, well=well, probes=tuple(ordered))


# -- the thread -----------------------------------------------------------------------------------------------------


class Monitor:
    """Asks every machine in turn, some at once.  ``every_s``: between two looks at a machine."""

    def __init__(self, lab: Lab, every_s: float = 300.0) -> None:
        self.lab = lab
        self.every_s = every_s
        self._due: dict[str, float] = {}
        self._busy: set[str] = set()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="health")
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join()

    def _run(self) -> None:
        rolled = saved = 0.0
        while not self._ended.wait(1.0):
            now = time.monotonic()
            try:
                self._begin(now)
                if now - rolled > 600:
                    rolled = now
                    roll_up(self.lab)
                if now - saved > 20:
                    saved = now
                    energy.tend(self.lab, self._pool.submit)
            except (StoreClosed, RuntimeError):  # RuntimeError: the pool is shut down
                return
            except Away as error:
                logging.getLogger("evenkeel.lab").warning("health: %s", error)

    def _begin(self, now: float) -> None:
        table = schema.machine
        with self.lab.store.read() as connection:
            asked = select(table.c.id, table.c.enclosure_id).where(table.c.state != "retired")
            rows = connection.execute(asked).all()
        enclosures = {row.enclosure_id for row in rows}
        for row in sorted(rows, key=lambda row: row.id not in enclosures):
            due = self._due.setdefault(row.id, now + random.uniform(0, min(10.0, self.every_s)))
            if due <= now and row.id not in self._busy:
                # A little apart, so that a thousand machines are not asked in one second for ever.
                self._due[row.id] = now + self.every_s * random.uniform(0.95, 1.05)
                self._busy.add(row.id)
                self._pool.submit(self._look, row.id)

    def _look(self, machine_id: str) -> None:
        try:
            with contextlib.suppress(EvenkeelError):  # it was removed, or the store is closing
                look(self.lab, machine_id)
        finally:
            self._busy.discard(machine_id)


@contextlib.contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Monitor]:
    """For :mod:`evenkeel.lab.parts`."""
    del app
    power.tidy(lab)
    monitor = Monitor(lab)
    monitor.start()
    try:
        yield monitor
    finally:
        monitor.stop()
