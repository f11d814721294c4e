"""Passwords of BMCs, PDUs and terminal servers, sealed in the database with a key file that lies beside it.

A user and a password by a name, which endpoints refer to.  They go in, and out to drivers only: no function here, and
so no request, shows one.  Setting them has its own permission (``secrets``), which power and console do not need.
A copy of the database is worth nothing without ``secrets.key``; back both up, but not together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, insert, select, update
from sqlalchemy import delete as sql_delete

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab import schema
from evenkeel.lab.actor import Actor, Conflict, NotFound
from evenkeel.lab.lab import Lab
from evenkeel.lab.power_drivers import Credentials

_SEALED: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


class Secret(Model):
    """All that is shown of one.  ``used_by``: machines whose endpoints refer to it."""

    name: str
    set_by: str
    set_ns: int
    used_by: tuple[str, ...] = ()


#: Two at once would each forget the other's key.
_ROTATING = threading.Lock()


def key_file(lab: Lab) -> Path:
    return lab.folder / "secrets.key"


def put(lab: Lab, actor: Actor, name: str, user: str, password: str) -> Secret:
    """Set or replace a secret.  Raises Forbidden, WrongInput."""
    actor.need("secrets", "set passwords of BMCs")
    if not name or len(name) > 200 or not name.isprintable():
        raise WrongInput(f"{name!r} is no name of a secret")
    if "\n" in user + password or "\0" in user + password:
        raise WrongInput("a line break or a zero byte in a user or password: no BMC takes that")

    def change(connection: Connection) -> None:
        # In the one writer: before a rotation or after it, never across it.
        sealed = _keys(lab).encrypt(_SEALED.dump_json({"user": user, "password": password}))
        row = {"sealed": sealed, "set_by": actor.name, "set_ns": lab.now()}
        found = connection.execute(update(schema.secret).where(schema.secret.c.name == name).values(row)).rowcount
        if not found:
            connection.execute(insert(schema.secret).values(row | {"name": name}))
        lab.store.event(connection, actor.name, "secret.set", "secret", name)

    lab.store.write(change)
    return next(secret for secret in listing(lab, actor) if secret.name == name)


def listing(lab: Lab, actor: Actor) -> list[Secret]:
    """Names only, with who uses them.  Raises Forbidden."""
    actor.need("secrets", "see which passwords are set")
    users: dict[str, set[str]] = {}
    with lab.store.read() as connection:
        endpoint, machine = schema.endpoint, schema.machine
        used = select(endpoint.c.secret, machine.c.name).join(machine).where(endpoint.c.secret.is_not(None))
        for secret, name in connection.execute(used):
            users.setdefault(secret, set()).add(name)
        table = schema.secret
        rows = connection.execute(select(table.c.name, table.c.set_by, table.c.set_ns).order_by(table.c.name)).all()
    return [Secret(name=n, set_by=by, set_ns=at, used_by=tuple(sorted(users.get(n, ())))) for n, by, at in rows]


def remove(lab: Lab, actor: Actor, name: str) -> None:
    """Raises Forbidden, NotFound, Conflict when an endpoint still refers to it."""
    found = next((secret for secret in listing(lab, actor) if secret.name == name), None)
    if found is None:
        raise NotFound(f"no secret {name}")
    if found.used_by:
        raise Conflict(f"secret {name} is used by {', '.join(found.used_by)}")

    def change(connection: Connection) -> None:
        connection.execute(sql_delete(schema.secret).where(schema.secret.c.name == name))
        lab.store.event(connection, actor.name, "secret.removed", "secret", name)

    lab.store.write(change)


def rotate(lab: Lab, actor: Actor) -> int:
    """Seal everything with a new key, and forget the old ones; returns how many secrets that were.

    Killed at any moment it leaves secrets that open: old keys go only after all is sealed anew.
    """
    actor.need("secrets", "rotate the key of the secrets")
    with _ROTATING:
        old = _read_keys(lab)
        new = Fernet.generate_key()
        _write_keys(lab, [new, *old])
        keys = MultiFernet([Fernet(new), *map(Fernet, old)])

        def change(connection: Connection) -> int:
            rows = connection.execute(select(schema.secret.c.name, schema.secret.c.sealed)).all()
            for name, sealed in rows:
                anew = keys.rotate(sealed)
                connection.execute(update(schema.secret).where(schema.secret.c.name == name).values(sealed=anew))
            lab.store.event(connection, actor.name, "secret.rotated", "secret", "*", count=len(rows))
            return len(rows)

        done = lab.store.write(change)
        _write_keys(lab, [new])
    return done


def credentials(lab: Lab, name: str | None) -> Credentials:
    """For drivers of this service, at the moment of use.  Raises NotFound, or EvenkeelError when the key is another."""
    if name is None:
        return Credentials()
    with lab.store.read() as connection:
        sealed = connection.scalar(select(schema.secret.c.sealed).where(schema.secret.c.name == name))
    if sealed is None:
        raise NotFound(f"no secret {name}", hint=f"evenkeel lab secret set {name}")
    try:
        found = _SEALED.validate_json(_keys(lab).decrypt(bytes(sealed)))
    except (InvalidToken, ValidationError):
        raise EvenkeelError(
            f"secret {name} does not open with {key_file(lab)}", hint="restore that file, or set the secret again"
        ) from None
    return Credentials(found["user"], found["password"])


def _keys(lab: Lab) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in _read_keys(lab)])


def _read_keys(lab: Lab) -> list[bytes]:
    """Newest first.  Made when there is none and nothing is sealed yet."""
    file = key_file(lab)
    try:
        if file.stat().st_mode & 0o077:
            raise EvenkeelError(f"others may read {file}", hint=f"chmod 600 {file}")
        keys = file.read_bytes().split()
    except FileNotFoundError:
        with lab.store.read() as connection:
            if connection.scalar(select(schema.secret.c.name).limit(1)) is not None:
                raise EvenkeelError(
                    f"{file} is gone, and with it all secrets", hint="restore it from a backup"
                ) from None
        keys = [Fernet.generate_key()]
        _write_keys(lab, keys)
    return keys


def _write_keys(lab: Lab, keys: Sequence[bytes]) -> None:
    file = key_file(lab)
    partial = file.with_suffix(".new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(b"\n".join(keys) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
