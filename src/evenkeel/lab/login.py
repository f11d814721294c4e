"""Log-in without a provider, and of programs: what is under way (for log-in by OIDC see :mod:`evenkeel.lab.oidc`).

A user of the service's machine gets a link from the command line (:class:`Links`); a command line elsewhere is let in
by somebody who is logged in (:class:`Devices`, as RFC 8628).  Both live in memory only: whoever was half-way when the
service restarted begins again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError
from evenkeel.lab import people
from evenkeel.lab.actor import Actor, Conflict, Forbidden, NotFound, with_roles
from evenkeel.lab.lab import Lab

_MINUTE = 60 * 10**9
LINK_NS = 10 * _MINUTE
DEVICE_NS = 15 * _MINUTE
#: A token that `evenkeel lab login` gets.
DEVICE_TOKEN_NS = 30 * 24 * 60 * _MINUTE
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words; nothing that looks like a digit
_MOST = 1000


class NoLogin(Forbidden):
    """The log-in did not work; the message says why, and whose turn it is."""


def refused(lab: Lab, who: str, error: EvenkeelError) -> None:
    """Note a log-in that did not work: the admin who is asked about it finds the cause."""
    lab.store.write(
        lambda connection: lab.store.event(
            connection, who or "unknown", "login.refused", "principal", who or "unknown", cause=error.message
        )
    )


# -- the user of this machine, in a browser -----------------------------------------------------------------------


class Links:
    """Log-in links for one use, for who is known by the socket."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open: dict[str, tuple[str, bool, int]] = {}

    def make(self, actor: Actor) -> str:
        """The code of the link."""
        code = secrets.token_urlsafe(24)
        with self._lock:
            now = self._clock()
            self._open = {key: value for key, value in self._open.items() if value[2] > now}
            if len(self._open) >= _MOST:
                raise Conflict("too many log-in links are open", hint="they end after ten minutes")
            self._open[code] = (actor.name, actor.may("anything"), now + LINK_NS)
        return code

    def use(self, code: str) -> tuple[str, bool]:
        """Name, and whether an admin of this machine.  Raises NoLogin."""
        with self._lock:
            name, admin, until = self._open.pop(code, ("", False, 0))
        if until <= self._clock():
            raise NoLogin(
                "this log-in link was used already, or is older than ten minutes",
                hint="`evenkeel lab open` on the lab's machine prints a new one",
            )
        return name, admin


def session_actor(lab: Lab, name: str, machine_admin: bool) -> Actor | None:
    """Who has a session.  ``machine_admin``: came by a link of root or of the service's user."""
    if machine_admin:
        return with_roles(name, ["admin"], via="session")
    found = people.actor_named(lab, name, "session")
    return found or (with_roles(name, [lab.settings.local_role], via="session") if people.is_local(name) else None)


# -- a command line elsewhere -------------------------------------------------------------------------------------


class Begun(Model):
    """``user_code``: what the person types or checks on the page ``verification_uri``."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in_ns: int
    interval_ns: int


class Answer(Model):
    """``secret``: the token, once it was granted; it is told once."""

    state: Literal["pending", "granted"]
    secret: str | None = None
    principal: str | None = None
    expires_ns: int | None = None


@dataclass
class _Device:
    user_code: str
    name: str
    until_ns: int
    granted: people.NewToken | None = None
    refused: bool = False


class Devices:
    """Command lines that wait to be let in."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._waiting: dict[str, _Device] = {}

    def begin(self, name: str, url: str) -> Begun:
        """``name``: of the machine that asks, as it says; ``url``: of the lab's pages."""
        code = "".join(secrets.choice(_LETTERS) for _ in range(8))
        user_code, device_code = f"{code[:4]}-{code[4:]}", secrets.token_urlsafe(32)
        with self._lock:
            self._forget()
            if len(self._waiting) >= _MOST:
                raise Conflict("too many log-ins wait", hint="try again in a quarter of an hour")
            self._waiting[device_code] = _Device(user_code, name[:120], self._clock() + DEVICE_NS)
        return Begun(
            device_code=device_code,
            user_code=user_code,
            verification_uri=f"{url}/device",
            verification_uri_complete=f"{url}/device?code={user_code}",
            expires_in_ns=DEVICE_NS,
            interval_ns=2 * 10**9,
        )

    def who_asks(self, user_code: str) -> str:
        """Name of the machine that waits with this code.  Raises NotFound."""
        with self._lock:
            return self._find(user_code).name

    def decide(self, lab: Lab, actor: Actor, user_code: str, *, grant: bool) -> None:
        """Let the machine in as ``actor``, with a token of 30 days; or turn it away."""
        with self._lock:
            device = self._find(user_code)
            if device.granted or device.refused:
                raise Conflict(f"{user_code} was decided already")
            device.refused = not grant
        if grant:
            scopes = sorted(actor.scopes)
            made = people.make_token(lab, actor, f"login from {device.name}", scopes=scopes, length_ns=DEVICE_TOKEN_NS)
            with self._lock:
                device.granted = made

    def ask(self, device_code: str) -> Answer:
        """Raises NoLogin when it was refused, is too old, or was told already."""
        with self._lock:
            self._forget()
            device = self._waiting.get(device_code)
            if device is None:
                raise NoLogin("this log-in took too long, or was used already", hint="begin it again")
            if device.refused:
                del self._waiting[device_code]
                raise NoLogin("the log-in was refused on the lab's page")
            if device.granted is None:
                return Answer(state="pending")
            del self._waiting[device_code]
        token = device.granted.token
        return Answer(
            state="granted", secret=device.granted.secret, principal=token.principal, expires_ns=token.expires_ns
        )

    def _find(self, user_code: str) -> _Device:
        self._forget()
        plain = user_code.upper().replace("-", "").replace(" ", "")
        for device in self._waiting.values():
            if secrets.compare_digest(device.user_code.replace("-", "").encode(), plain.encode()):
                return device
        raise NotFound(f"no machine waits with the code {user_code[:20]}", hint="it ends after a quarter of an hour")

    def _forget(self) -> None:
        now = self._clock()
        self._waiting = {key: device for key, device in self._waiting.items() if device.until_ns > now}
