"""The keeper of claims: lets time pass for them, and has machines prepared before they are offered.

A thread of the service.  It ticks when something is due and when something happened; preparations run beside it, a
few at a time, and after a restart those that were under way begin again.  Only what is a machine's own fault makes it
suspect: a request that nothing can fulfil ends, and after an error of the lab itself the same machine is tried again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Connection, select

from evenkeel.errors import NotAsWanted
from evenkeel.lab import allowed, claims, health, machines, media, touch
from evenkeel.lab.actor import Conflict, Forbidden
from evenkeel.lab.install import Installing
from evenkeel.lab.lab import Lab
from evenkeel.lab.prepare import ByAddress, Job, Preparer, WrongRequest, blame, judge, reason_of
from evenkeel.lab.schema import machine
from evenkeel.lab.store import Away, StoreClosed
from evenkeel.lab.words import duration

#: Asked after a machine was prepared; returns why it is not well, or None.
Check = Callable[[Lab, str], str | None]
#: Installing many at once fills disks and networks.
MOST_AT_ONCE = 4
#: How long an installation may take where the owner says nothing.
INSTALL_NS = 3600 * 10**9
#: Looks at least so often, and at most (a busy queue makes thousands of events a second).
_OFTEN_S, _SELDOM_S = 0.2, 60.0
#: After an error of the lab itself it is tried again after so long, after each further one twice as long later.
_AGAIN_NS, _AGAIN_MOST_NS = 10 * 10**9, 600 * 10**9
_log = logging.getLogger(__name__)


class Keeper:
    """``checks``: of health, by the name that a person reads."""

    def __init__(self, lab: Lab, preparer: Preparer | None = None, checks: dict[str, Check] | None = None) -> None:
        self.lab = lab
        self.preparer = preparer or Installing(lab, ByAddress())
        self.checks = checks or {}
        self._wake = threading.Event()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[int | str, str] = {}  # claim, or machine whose drive is emptied -> the machine
        #: Machine whose drive could not be emptied -> when, by the steady clock, it is tried again.
        self._full: dict[str, int] = {}
        #: Fencing number of a claim -> errors of the lab in a row, and when, by the steady clock, it is tried again.
        self._later: dict[int, tuple[int, int]] = {}
        self._thread = threading.Thread(target=self._keep, name="claims-keeper", daemon=True)

    # -- the thread

    def start(self) -> None:
        self._unlisten = self.lab.store.listen(lambda seq: self._wake.set())
        self._thread.start()

    def close(self) -> None:
        """Preparations that are under way are left: they begin again with the next service."""
        self._end.set()
        self._wake.set()
        self._unlisten()
        self._thread.join()

    def _keep(self) -> None:
        while not self._end.is_set():
            self._wake.clear()
            wait_s = _SELDOM_S
            try:
                due = self.look()
                if due is not None:
                    wait_s = max(_OFTEN_S, min(_SELDOM_S, (due - self.lab.now()) / 1e9))
            except StoreClosed:
                return
            except Away as error:
                _log.warning("claims: %s", error)
                wait_s = 1.0
            except Exception:  # noqa: BLE001  a thread that ends would leave everybody waiting
                _log.exception("claims: a look at what is due failed; the next one is in %.0f s", wait_s)
            self._end.wait(_OFTEN_S)
            self._wake.wait(wait_s)

    # -- one look

    def look(self) -> int | None:
        """Do what is due, and begin the preparations that are asked for.  Returns when something is due next."""
        due = claims.tick(self.lab)
        with self._lock:
            busy = set(self._running.values())
        claims.let_go(self.lab, busy)
        with self.lab.store.read() as connection:
            wanted = list(claims.preparing(connection))
            done_with = claims.done_with(connection)
        at = self.lab.steady()
        with self._lock:
            fencings = {row.fencing for row in wanted}
            self._later = {fencing: later for fencing, later in self._later.items() if fencing in fencings}
            again = [when - at + self.lab.now() for _, when in self._later.values() if when > at]
        for row in wanted:
            with self._lock:
                if (
                    row.id in self._running
                    or self._later.get(row.fencing, (0, at))[1] > at
                    or row.machine_id in self._running.values()
                    or sum(isinstance(key, int) for key in self._running) >= MOST_AT_ONCE
                ):
                    continue
                self._running[row.id] = row.machine_id
            self._begin(row.id, f"prepare-{row.id}", partial(self.prepare, row))
        for machine_id in done_with:
            with self._lock:
                emptying = sum(isinstance(key, str) for key in self._running)
                later = self._full.get(machine_id, at) > at
                if machine_id in self._running.values() or later or emptying >= MOST_AT_ONCE:
                    continue
                self._running[machine_id] = machine_id
            self._begin(machine_id, f"empty-{machine_id}", partial(self.empty, machine_id))
        return min((when for when in (due, *again) if when is not None), default=None)

    def _begin(self, key: int | str, name: str, work: Callable[[], object]) -> None:
        """Beside this thread; ``key``: of what is under way, until it ends."""

        def run() -> None:
            try:
                with contextlib.suppress(StoreClosed, Away):
                    work()
            finally:
                with self._lock:
                    del self._running[key]
                self._wake.set()

        threading.Thread(target=run, name=name, daemon=True).start()

    def empty(self, machine_id: str) -> None:
        """Take what a holder had in the drive out, in this thread; where it stays, the machine is suspect."""
        with self.lab.store.read() as connection:
            found = touch.find(connection, machine_id)
        why = ""
        try:
            media.empty(self.lab, found)
            self._full.pop(machine_id, None)
        except (StoreClosed, Away):
            raise
        except Exception as error:  # noqa: BLE001  it is tried again later, not at once
            why = reason_of(error)
            self._full[machine_id] = self.lab.steady() + _AGAIN_MOST_NS

        def change(connection: Connection) -> None:
            now = touch.find(connection, machine_id)
            if not why:
                machines.set_system(self.lab, connection, "lab", machine_id, now.system_of, "")
            elif now.state == "ready":
                machines.set_state(self.lab, connection, "lab", machine_id, "suspect", why)

        self.lab.store.write(change)

    def prepare(self, row: Any) -> claims.State | None:
        """Prepare the machine of one claim, in this thread, and write down what came of it."""
        failed: str | None = None
        try:
            self._prepare(row)
        except (StoreClosed, Away):  # it is not the machine's fault: it begins again
            raise
        except Forbidden as error:
            return claims.passed_over(self.lab, row.id, row.fencing, str(error))
        except WrongRequest as error:
            return claims.refused(self.lab, row.id, row.fencing, str(error), refund=not error.tried)
        except Exception as error:  # noqa: BLE001  whatever it is, somebody waits for what comes of it
            if blame(error) == "lab":
                _log.exception("claims: preparing a machine for claim %d", row.id)
                self._put_off(row, reason_of(error))
                return "preparing"
            failed = reason_of(error)
        return claims.prepared(self.lab, row.id, row.fencing, failed)

    def _put_off(self, row: Any, reason: str) -> None:
        """The lab itself failed: the machine is kept, and the holder told."""
        with self._lock:
            failures = self._later.get(row.fencing, (0, 0))[0] + 1
            wait_ns = min(_AGAIN_MOST_NS, _AGAIN_NS << min(failures - 1, 10))
            self._later[row.fencing] = failures, self.lab.steady() + wait_ns
        what = f"the lab itself failed, and tries again in {duration(wait_ns)}: {reason}"
        told = {"what": what}
        try:
            self.lab.store.write(lambda c: self.lab.store.event(c, "lab", "claim.step", "claim", row.id, **told))
        except (StoreClosed, Away):
            raise
        except Exception:  # noqa: BLE001  on a full disk nobody can be told, and it is tried again all the same
            _log.exception("claims: the holder of claim %d could not be told", row.id)

    def _prepare(self, row: Any) -> None:
        with self.lab.store.read() as connection:
            job = _job(connection, row)
            before = machines.flat_of(connection, machine.c.id == row.machine_id)[row.machine_id]
        if job is None:
            return

        def say(what: str) -> None:
            told = {"machine": job.name, "what": what}
            self.lab.store.write(lambda c: self.lab.store.event(c, "lab", "claim.step", "claim", row.id, **told))

        done = self.preparer.prepare(job, say)
        if (told := done.facts) is None:
            say("it is in another boot; its system is the holder's own, so neither facts nor health are asked for")
            return
        judge(before, told, done.inventory)

        def take(connection: Connection) -> None:
            if job.installs:
                machines.set_system(self.lab, connection, "lab", job.machine_id, "", "")
            machines.take_facts(self.lab, connection, "lab", job.machine_id, told, done.inventory)

        self.lab.store.write(take)
        for name, check in self.checks.items():
            say(f"asking its health: {name}")
            if trouble := check(self.lab, job.machine_id):
                raise NotAsWanted(f"{name}: {trouble}")


def _job(connection: Connection, row: Any) -> Job | None:
    """None: nothing can be done with it, so it is offered as it is."""
    found = connection.execute(select(machine).where(machine.c.id == row.machine_id)).one()
    address = machines.address_of(connection, row.machine_id)
    method = claims.how_prepared(connection, found)
    # Its owner may have changed it meanwhile.
    who = allowed.of_name(connection, row.holder, row.team, row.boot_source)
    if why := allowed.why_not_booted(found, who):
        raise Forbidden(f"{found.name} {why}", hint="reserve it without")
    if why := claims.why_not_installed(connection, found):
        raise Conflict(f"{found.name} {why}")
    if address is None or method == "none":
        return None
    policy = machines.policy_of(found)
    install_s = (policy.install_ns or INSTALL_NS) / 1e9
    image, netboot = policy.image, policy.netboot
    if own := row.boot_source:
        image, netboot = own.get("image"), own.get("netboot")
    return Job(found.id, found.name, address, method, image, netboot, install_s, row.holder if own else "")


@contextlib.contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Keeper]:
    """For :mod:`evenkeel.lab.parts`."""
    keeper = Keeper(lab, checks={"log-in": health.check})
    app.state.keeper = keeper
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.close()
