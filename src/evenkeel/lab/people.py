"""Principals (people and services), what they may do, and the tokens of their programs.

Who somebody *is* was found out elsewhere (:mod:`evenkeel.lab.api.who`: socket, session, token;
:mod:`evenkeel.lab.login`: OIDC).  A token is shown once and kept as its SHA-256 only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import secrets
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput
from evenkeel.lab.actor import ROLES, SCOPES, Actor, Conflict, Forbidden, NotFound, need_version, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import Page, key_of, page
from evenkeel.lab.schema import principal as _principal
from evenkeel.lab.schema import token as _token

_DAY = 86_400 * 10**9
LONGEST_TOKEN_NS = 366 * _DAY
PREFIX = "ekl_"  # so that scanners for leaked secrets can know it
#: How exactly it is written down when somebody was last there.
_SEEN_EVERY_NS = 60 * 10**9
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,119}")


class Principal(Model):
    """``scopes``: what the roles come to."""

    name: str
    kind: Literal["person", "service"]
    issuer: str
    shown: str
    mail: str
    roles: tuple[str, ...]
    teams: tuple[str, ...]
    scopes: tuple[str, ...]
    seen_ns: int | None
    version: int


class Me(Model):
    """Who asks, as the lab sees it."""

    name: str
    via: str
    scopes: tuple[str, ...]
    teams: tuple[str, ...]


class Token(Model):
    """``used_ns``: exact to a minute."""

    id: int
    principal: str
    name: str
    scopes: tuple[str, ...]
    created_ns: int
    expires_ns: int
    used_ns: int | None
    revoked_ns: int | None


class NewToken(Model):
    """``secret``: shown this once."""

    token: Token
    secret: str


# -- who it is ----------------------------------------------------------------------------------------------------


def me(actor: Actor) -> Me:
    return Me(name=actor.name, via=actor.via, scopes=tuple(sorted(actor.scopes)), teams=tuple(sorted(actor.teams)))


def local_actor(lab: Lab, uid: int) -> Actor:
    """The user of this machine that asks over the Unix socket.  Root, and whoever runs the service, are admins."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid-{uid}"
    if uid in (0, os.geteuid()):
        return with_roles(name, ["admin"], via="socket")
    found = _find(lab, name)
    if found is None:
        return with_roles(name, [lab.settings.local_role], via="socket")
    return with_roles(name, found["roles"], found["teams"], via="socket")


def actor_named(lab: Lab, name: str, via: str) -> Actor | None:
    """A principal with all it may do; None: there is none of that name (any more)."""
    found = _find(lab, name)
    return with_roles(name, found["roles"], found["teams"], via) if found else None


def actor_of_token(lab: Lab, secret: str) -> Actor | None:
    """What the token allows, of what its principal may do.  None: unknown, expired or revoked."""
    now = lab.now()
    columns = (_token.c.id, _token.c.name.label("token"), _token.c.scopes, _token.c.used_ns, _principal)
    query = select(*columns).join(_principal, _token.c.principal == _principal.c.name)
    query = query.where(_token.c.sha256 == _sha256(secret), _token.c.expires_ns > now, _token.c.revoked_ns.is_(None))
    with lab.store.read() as connection:
        found = connection.execute(query).mappings().first()
    if found is None:
        return None
    if (found["used_ns"] or 0) + _SEEN_EVERY_NS < now:
        used = update(_token).where(_token.c.id == found["id"]).values(used_ns=now)
        lab.store.write_soon(lambda connection: connection.execute(used) and None)
    whole = with_roles(found["name"], found["roles"], found["teams"])
    scopes = frozenset(found["scopes"]) & (whole.scopes | (SCOPES if whole.may("anything") else frozenset()))
    return Actor(found["name"], scopes, whole.teams, f"token {found['token']}")


# -- principals ---------------------------------------------------------------------------------------------------


def principals(lab: Lab, actor: Actor, *, after: str | None = None, limit: int = 100) -> Page[Principal]:
    """All who were ever here, by name."""
    actor.need("read", "look at the people of the lab")
    query = select(_principal).order_by(_principal.c.name).limit(limit + 1)
    if key := key_of(after, str):
        query = query.where(_principal.c.name > key[0])
    with lab.store.read() as connection:
        rows = [_shown(row) for row in connection.execute(query).mappings()]
    return page(rows, limit, lambda row: [row.name])


def principal(lab: Lab, actor: Actor, name: str) -> Principal:
    actor.need("read", "look at the people of the lab")
    return _shown(_need(_find(lab, name), name))


def add_service(lab: Lab, actor: Actor, name: str, *, roles: Iterable[str], shown: str = "") -> Principal:
    """A principal for a program; tokens are made for it."""
    actor.need("people", "add services")
    chosen = _roles(roles)
    if not _NAME.fullmatch(name):
        raise WrongInput(f"{name!r} cannot be the name of a service", hint="letters, digits and . _ @ + -")

    def change(connection: Connection) -> None:
        if _row(connection, name) is not None:
            raise Conflict(f"there is a principal {name} already")
        values = {"name": name, "kind": "service", "shown": shown, "roles": chosen, "teams": []}
        connection.execute(insert(_principal).values(**values))
        lab.store.event(connection, actor.name, "principal.added", "principal", name, kind="service", roles=chosen)

    lab.store.write(change)
    return principal(lab, actor, name)


def set_rights(
    lab: Lab, actor: Actor, name: str, *, roles: Iterable[str], teams: Iterable[str], version: int | None = None
) -> Principal:
    """Give a principal its roles and teams.  Whoever logs in by OIDC gets those of their groups anew each time."""
    actor.need("people", "change what people may do")
    chosen, groups = _roles(roles), sorted(set(teams))

    def change(connection: Connection) -> None:
        row = _need(_row(connection, name), name)
        need_version(f"the principal {name}", version, row["version"])
        changed = update(_principal).where(_principal.c.name == name)
        connection.execute(changed.values(roles=chosen, teams=groups, version=row["version"] + 1))
        before = {"roles": row["roles"], "teams": row["teams"]}
        data: dict[str, Any] = {"roles": chosen, "teams": groups, "before": before}
        lab.store.event(connection, actor.name, "principal.rights", "principal", name, **data)

    lab.store.write(change)
    return principal(lab, actor, name)


def logged_in(
    lab: Lab, name: str, *, issuer: str, shown: str, mail: str, roles: Iterable[str], teams: Iterable[str], link: bool
) -> None:
    """Somebody came through the provider ``issuer``: note it.  Raises Forbidden when the name is another's."""
    chosen, groups = _roles(roles), sorted(set(teams))
    if not _NAME.fullmatch(name):
        raise Forbidden(f"the provider calls you {name!r}, which cannot be a name here")

    def change(connection: Connection) -> None:
        row = _row(connection, name)
        values: dict[str, Any] = {"shown": shown, "mail": mail, "roles": chosen, "teams": groups}
        values |= {"issuer": issuer, "seen_ns": lab.now()}
        if row is None and is_local(name) and not link:
            raise _taken(name)
        if row is None:
            connection.execute(insert(_principal).values(name=name, kind="person", **values))
            lab.store.event(connection, name, "principal.added", "principal", name, kind="person", roles=chosen)
        else:
            if row["issuer"] != issuer and not (link and row["issuer"] == "" and row["kind"] == "person"):
                raise _taken(name)
            connection.execute(update(_principal).where(_principal.c.name == name).values(**values))
        lab.store.event(connection, name, "login", "principal", name, roles=chosen, teams=groups)

    lab.store.write(change)


def _taken(name: str) -> Forbidden:
    return Forbidden(
        f"the name {name} belongs to another account of this lab",
        hint="an admin may say in the settings that both are one person: `link_local: true` below `oidc`",
    )


def is_local_admin(name: str) -> bool:
    """Whether :func:`local_actor` makes an admin of the user of that name; such a one need be no principal."""
    return name in _local_admins()


@cache
def _local_admins() -> frozenset[str]:
    names = set()
    for uid in (0, os.geteuid()):
        with contextlib.suppress(KeyError):
            names.add(pwd.getpwuid(uid).pw_name)
    return frozenset(names)


def is_local(name: str) -> bool:
    """Whether a user of this machine is called so."""
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True


# -- tokens -------------------------------------------------------------------------------------------------------


def tokens(lab: Lab, actor: Actor, *, of: str | None = None) -> tuple[Token, ...]:
    """Of oneself, or of ``of``; the newest first, revoked and expired ones too."""
    whose = of or actor.name
    if whose != actor.name:
        actor.need("people", f"see the tokens of {whose}")
    query = select(_token).where(_token.c.principal == whose).order_by(_token.c.id.desc())
    with lab.store.read() as connection:
        return tuple(_token_shown(row) for row in connection.execute(query).mappings())


def make_token(
    lab: Lab, actor: Actor, name: str, *, scopes: Iterable[str], length_ns: int, of: str | None = None
) -> NewToken:
    """A token for oneself, or for a service.  It allows ``scopes``, and never more than its maker may."""
    whose = of or actor.name
    wanted = sorted(set(scopes))
    name = name.strip()
    if unknown := [scope for scope in wanted if scope not in SCOPES]:
        raise WrongInput(f"there is no scope {unknown[0]!r}", hint=f"scopes are {', '.join(sorted(SCOPES))}")
    if not wanted:
        raise WrongInput("a token needs a scope", hint=f"scopes are {', '.join(sorted(SCOPES))}")
    if not name or len(name) > 120:
        raise WrongInput("a token needs a name, so that it can be known again", hint="of the program that will have it")
    if not 0 < length_ns <= LONGEST_TOKEN_NS:
        raise WrongInput(
            "a token lives between now and 366 days", hint="programs are easier to give a new one than to find"
        )
    if excess := [scope for scope in wanted if not actor.may(scope)]:
        raise Forbidden(f"{actor.name} may not {excess[0]}, so neither may a token that {actor.name} makes")
    if actor.via.startswith("token "):
        raise Forbidden("a token cannot make tokens", hint="log in, or use the socket")
    if whose != actor.name:
        actor.need("people", f"make tokens for {whose}")
    secret = PREFIX + secrets.token_urlsafe(32)
    now = lab.now()

    def change(connection: Connection) -> int:
        row = _row(connection, whose)
        if row is None:
            if whose != actor.name:
                raise NotFound(
                    f"there is no principal {whose}", hint=f"`evenkeel lab program {whose}` adds a program of that name"
                )
            roles = ["admin"] if actor.may("anything") else [lab.settings.local_role]
            values = {"name": whose, "kind": "person", "roles": roles, "teams": sorted(actor.teams), "seen_ns": now}
            connection.execute(insert(_principal).values(**values))
        elif row["kind"] != "service" and whose != actor.name:
            raise Forbidden(f"{whose} is a person, who makes their own tokens")
        values = {"principal": whose, "name": name, "sha256": _sha256(secret), "scopes": wanted}
        done = connection.execute(insert(_token).values(**values, created_ns=now, expires_ns=now + length_ns))
        made = int(done.inserted_primary_key[0])  # type: ignore[index]
        lab.store.event(connection, actor.name, "token.made", "principal", whose, token=name, id=made, scopes=wanted)
        return made

    made = lab.store.write(change)
    return NewToken(token=next(token for token in tokens(lab, actor, of=whose) if token.id == made), secret=secret)


def revoke_token(lab: Lab, actor: Actor, id_: int) -> Token:
    """At once, and for good.  A second time does nothing."""

    def change(connection: Connection) -> RowMapping:
        row = connection.execute(select(_token).where(_token.c.id == id_)).mappings().first()
        if row is None or (row["principal"] != actor.name and not actor.may("people")):
            raise NotFound(f"you have no token {id_}")
        if row["revoked_ns"] is None:
            connection.execute(update(_token).where(_token.c.id == id_).values(revoked_ns=lab.now()))
            lab.store.event(
                connection, actor.name, "token.revoked", "principal", row["principal"], token=row["name"], id=id_
            )
        return connection.execute(select(_token).where(_token.c.id == id_)).mappings().one()

    return _token_shown(lab.store.write(change))


# -- rows ---------------------------------------------------------------------------------------------------------


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _row(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(_principal).where(_principal.c.name == name)).mappings().first()


def _find(lab: Lab, name: str) -> RowMapping | None:
    with lab.store.read() as connection:
        return _row(connection, name)


def _need(row: RowMapping | None, name: str) -> RowMapping:
    if row is None:
        raise NotFound(f"there is no principal {name}", hint="people appear here when they first log in")
    return row


def _roles(roles: Iterable[str]) -> list[str]:
    chosen = sorted(set(roles))
    if unknown := [role for role in chosen if role not in ROLES]:
        raise WrongInput(f"there is no role {unknown[0]!r}", hint=f"roles are {', '.join(ROLES)}")
    return chosen


def _shown(row: RowMapping) -> Principal:
    scopes = sorted(with_roles(row["name"], row["roles"]).scopes)
    return Principal(**{**row, "roles": tuple(row["roles"]), "teams": tuple(row["teams"]), "scopes": tuple(scopes)})


def _token_shown(row: RowMapping) -> Token:
    known = {name: row[name] for name in Token.model_fields if name != "scopes"}
    return Token(**known, scopes=tuple(row["scopes"]))
