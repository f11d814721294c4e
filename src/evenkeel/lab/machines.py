"""Machines of the pool: registered by what the probe tells, known again by it, with their owners, states and history.

Who may: ``read`` sees all machines, their owner (or its team) and ``machines`` changes them.  States that come of
claims are set by :mod:`evenkeel.lab.claims`; who finds a machine broken calls :func:`set_state`.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.errors import WrongInput
from evenkeel.lab import flat
from evenkeel.lab.actor import Actor, Conflict, NotFound, need_version
from evenkeel.lab.facets import read_told, value_of
from evenkeel.lab.flat import Flat
from evenkeel.lab.held import STATES as HELD
from evenkeel.lab.identity import Identity, Likeness, compare, identity_of
from evenkeel.lab.lab import Lab
from evenkeel.lab.paging import Page, key_of, page
from evenkeel.lab.schema import claim as claims
from evenkeel.lab.schema import endpoint, fact, machine, snapshot
from evenkeel.lab.schema import event as events

State = Literal["ready", "claimed", "preparing", "suspect", "broken", "off", "retired"]
#: What a person may set; the others come of claims.
SETTABLE: tuple[State, ...] = ("ready", "suspect", "broken", "off")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
#: Pages have these addresses beside those of machines.
_TAKEN = ("add", "search", "forget")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$", description="as a host name")]
Word = Annotated[str, Field(max_length=200)]
_OPEN_URL = r"^https?://[^\s/@?#]+/\S+$"


def _open_url(text: str) -> str:
    if re.fullmatch(_OPEN_URL, text) is None:
        raise ValueError(
            f"{text!r} is not the address of a file on a web server, without a password: as in http://HOST/host.iso"
        )
    return text


#: Read by machines before they have a system, so all may read what is there.
OpenUrl = Annotated[str, Field(max_length=2000, json_schema_extra={"pattern": _OPEN_URL}), AfterValidator(_open_url)]
#: Flat facts that the probe does not tell: rewritten when the row changes, not when facts do.
_OWN = ("enclosure", "tag", "boot.own")


class Policy(Model):
    """What its owner allows.  Other parts of the lab keep their own keys here too (power, health)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    longest_ns: Nanoseconds | None = Field(default=None, description="longest reservation; None: as the lab has it")
    users: tuple[Word, ...] = Field(default=(), description="people who may reserve it; empty, with no team: all")
    teams: tuple[Word, ...] = Field(default=(), description="teams that may reserve it")
    steps: bool = Field(default=True, description="whether steps of the queue may take it")
    prepare: Literal["full", "check", "none"] | None = Field(
        default=None,
        description="before it is offered: install anew, only look at it, nothing; None: what its driver can do",
    )
    image: OpenUrl | None = Field(
        default=None,
        description="http(s) URL, without a password, of an ISO that installs it by itself: its BMC boots it once "
        "before the machine is offered",
    )
    netboot: OpenUrl | None = Field(
        default=None,
        description="http(s) URL, without a password, of an iPXE script that installs it by itself: its firmware is "
        "given it once before the machine is offered",
    )
    install_ns: Nanoseconds | None = Field(
        default=None, gt=0, description="from that boot until it answers over ssh, at most; None: an hour"
    )
    own_boot: bool = Field(
        default=False,
        description="whether who reserves it may have it booted from an image or a script of their own instead; for "
        "machines that are installed for each who gets them, and that steps do not take, as they take them as they are",
    )
    draw_watts: float | None = Field(
        default=None, gt=0, le=1e6, description="what it draws at most; None: the most that it told"
    )
    idle_watts: float | None = Field(
        default=None, ge=0, le=1e6, description="what it draws when nobody uses it; None: the least that it told"
    )
    tags: tuple[Word, ...] = ()
    labels: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,40}$")], Word] = {}

    @property
    def lends_boot(self) -> bool:
        """Whether it may be booted from a source of somebody's own: it is allowed, and each who gets it finds the
        owner's system, installed anew.  Steps take it as it is."""
        anew_for_each = bool(self.image or self.netboot) and self.prepare in (None, "full") and not self.steps
        return self.own_boot and anew_for_each

    @model_validator(mode="after")
    def _one_source(self) -> Policy:
        if self.image and self.netboot:
            raise ValueError("a machine is installed from an image or by network, not from both")
        return self


class Held(Model):
    """Who has a machine now."""

    claim_id: int
    kind: str
    state: str
    holder: str
    team: str
    reason: str
    began_ns: int | None
    until_ns: int | None


class Machine(Model):
    """``address``: where the lab itself reaches it, if it does; ``told``: a few facts for a list.

    ``contains``: machines that stand in it, which its management module affects.  ``system_of``: who booted, from a
    source of their own, what it may have for a system; empty: it is its owner's.  ``medium``: URL of an image of theirs
    that may be in its virtual drive.
    """

    id: str
    name: str
    site: str
    enclosure: str | None
    contains: tuple[str, ...]
    owner: str
    team: str
    note: str
    state: State
    state_since_ns: int
    state_reason: str
    identity: Identity
    policy: Policy
    system_of: str
    medium: str
    netbox_id: int | None
    address: str | None
    held: Held | None
    told: dict[str, tuple[str | int | float, ...]]
    version: int
    registered_ns: int


class Registration(Model):
    """A machine for the pool: facts and inventory as the probe wrote them, or by hand without.

    ``same_as``: it is that machine, whatever its serial numbers say; ``new``: it is none of those that it is like.
    """

    name: Name | None = Field(default=None, description="the facts' host name if left out")
    facts: Facts | None = None
    inventory: Inventory | None = None
    address: Word | None = Field(default=None, description="ssh://root@HOST[:PORT] or virtual:NAME")
    site: Word = ""
    enclosure: Name | None = None
    owner: Word | None = Field(default=None, description="whoever registers it, if left out")
    team: Word = ""
    note: Annotated[str, Field(max_length=10_000)] = ""
    policy: Policy = Policy()
    same_as: Name | None = None
    new: bool = False


class Registered(Model):
    """``was``: new, or known as ``known_as``; ``why`` it is known."""

    machine: Machine
    was: Literal["new", "known"]
    known_as: str | None = None
    why: str = ""
    changes: tuple[Change, ...] = ()


class Change(Model):
    """Of one key of the flat facts: what went, what came."""

    key: str
    gone: tuple[str | int | float, ...] = ()
    come: tuple[str | int | float, ...] = ()


class Edit(Model):
    """What is given is changed; what is left out stays."""

    name: Name | None = None
    site: Word | None = None
    enclosure: Name | Literal[""] | None = Field(default=None, description="empty: none")
    owner: Word | None = None
    team: Word | None = None
    note: Annotated[str, Field(max_length=10_000)] | None = None
    policy: Policy | None = None
    address: Word | None = Field(default=None, description="empty: none")


class Happened(Model):
    """An entry of a machine's history."""

    seq: int
    at_ns: int
    actor: str
    type: str
    data: dict[str, Any]


# -- reading ------------------------------------------------------------------------------------------------------


def get(lab: Lab, actor: Actor, name: str) -> Machine:
    """By name or id.  Raises NotFound."""
    actor.need("read", "see machines")
    with lab.store.read() as connection:
        return one(connection, find(connection, name).id)


def find(connection: Connection, name: str) -> Row[Any]:
    """The row of a machine by its name or id.  Raises NotFound."""
    row = connection.execute(select(machine).where((machine.c.name == name.lower()) | (machine.c.id == name))).first()
    if row is None:
        raise NotFound(f"there is no machine {name!r}", hint="`evenkeel lab machines` lists them")
    return row


def one(connection: Connection, machine_id: str) -> Machine:
    return many(connection, [machine_id])[0]


def many(connection: Connection, ids: list[str]) -> list[Machine]:
    """Machines by id, sorted by name."""
    rows = connection.execute(select(machine).where(machine.c.id.in_(ids)).order_by(machine.c.name)).all()
    inside = {row.enclosure_id for row in rows if row.enclosure_id}
    enclosures = names(connection, inside) if inside else {}
    contained: dict[str, list[str]] = {}
    inner = select(machine.c.enclosure_id, machine.c.name).where(machine.c.enclosure_id.in_(ids))
    for found in connection.execute(inner.order_by(machine.c.name)):
        contained.setdefault(found.enclosure_id, []).append(found.name)
    told = read_told(connection, ids)
    holding = select(claims).where(claims.c.machine_id.in_(ids), claims.c.state.in_(HELD))
    held = {row.machine_id: row for row in connection.execute(holding)}
    addresses = {
        row.machine_id: row.address
        for row in connection.execute(
            select(endpoint.c.machine_id, endpoint.c.address)
            .where(endpoint.c.machine_id.in_(ids), endpoint.c.kind == "ssh")
            .order_by(endpoint.c.id.desc())
        )
    }
    return [
        Machine(
            id=row.id,
            name=row.name,
            site=row.site,
            enclosure=enclosures.get(row.enclosure_id),
            contains=tuple(contained.get(row.id, ())),
            owner=row.owner,
            team=row.team,
            note=row.note,
            state=row.state,
            state_since_ns=row.state_since_ns,
            state_reason=row.state_reason,
            identity=Identity.model_validate(row.identity),
            policy=policy_of(row),
            system_of=row.system_of,
            medium=row.medium,
            netbox_id=row.netbox_id,
            address=addresses.get(row.id),
            held=held_of(held.get(row.id)),
            told=told.get(row.id, {}),
            version=row.version,
            registered_ns=row.registered_ns,
        )
        for row in rows
    ]


def address_of(connection: Connection, machine_id: str) -> str | None:
    """Where the lab itself reaches a machine."""
    mine = select(endpoint.c.address).where(endpoint.c.machine_id == machine_id, endpoint.c.kind == "ssh")
    return connection.scalar(mine.order_by(endpoint.c.id).limit(1))


def policy_of(row: Any) -> Policy:
    return Policy.model_validate(row.policy or {})


def names(connection: Connection, ids: Iterable[str]) -> dict[str, str]:
    rows = connection.execute(select(machine.c.id, machine.c.name).where(machine.c.id.in_(list(ids))))
    return {row.id: row.name for row in rows}


def held_of(row: Any) -> Held | None:
    if row is None:
        return None
    return Held(
        claim_id=row.id,
        kind=row.kind,
        state=row.state,
        holder=row.holder,
        team=row.team,
        reason=row.reason,
        began_ns=row.began_ns,
        until_ns=row.until_ns,
    )


def flat_of(connection: Connection, where: Any = None) -> dict[str, dict[str, list[str | float]]]:
    """Flat facts of machines by id, for predicates in memory: all machines, or those of a condition."""
    columns = machine.c.id, machine.c.name, machine.c.site, machine.c.state, machine.c.owner, machine.c.team
    chosen = select(*columns) if where is None else select(*columns).where(where)
    found: dict[str, dict[str, list[str | float]]] = {}
    for row in connection.execute(chosen):
        own = {"name": row.name, "site": row.site, "state": row.state, "owner": row.owner, "team": row.team}
        found[row.id] = {key: [value] for key, value in own.items() if value}
    facts = select(fact.c.machine_id, fact.c.key, fact.c.text, fact.c.num)
    if where is not None:
        facts = facts.where(fact.c.machine_id.in_(select(machine.c.id).where(where)))
    for told in connection.execute(facts):
        found[told.machine_id].setdefault(told.key, []).append(value_of(told.key, told.text, told.num))
    return found


def facts_of(lab: Lab, actor: Actor, name: str) -> dict[str, tuple[str | int | float, ...]]:
    """Everything that a search can ask of a machine, sorted by key."""
    actor.need("read", "see machines")
    with lab.store.read() as connection:
        found = flat_of(connection, machine.c.id == find(connection, name).id)
    return {key: tuple(values) for facts in found.values() for key, values in sorted(facts.items())}


class Snapshot(Model):
    """What the probe wrote, as it wrote it."""

    at_ns: int
    facts: Facts
    inventory: Inventory | None = None


def latest(lab: Lab, actor: Actor, name: str) -> Snapshot:
    """The last facts of a machine.  Raises NotFound when it never had any."""
    actor.need("read", "see machines")
    with lab.store.read() as connection:
        row = find(connection, name)
        found = last_snapshot(connection, row.id)
    if found is None:
        raise NotFound(f"no facts of {row.name} are known", hint=f"`evenkeel lab machine facts {row.name} ADDRESS`")
    return found


def last_snapshot(connection: Connection, machine_id: str) -> Snapshot | None:
    newest = select(snapshot).where(snapshot.c.machine_id == machine_id).order_by(snapshot.c.id.desc()).limit(1)
    row = connection.execute(newest).first()
    if row is None:
        return None
    return Snapshot.model_validate({"at_ns": row.at_ns, **json.loads(row.document)})


def history(lab: Lab, actor: Actor, name: str, *, after: str | None = None, limit: int = 50) -> Page[Happened]:
    """What happened to a machine, newest first: facts that changed, states, names, owners."""
    actor.need("read", "see machines")
    seen = key_of(after, int)
    with lab.store.read() as connection:
        row = find(connection, name)
        chosen = select(events).where(events.c.object == "machine", events.c.object_id == row.id)
        if seen:
            chosen = chosen.where(events.c.seq < seen[0])
        rows = connection.execute(chosen.order_by(events.c.seq.desc()).limit(limit + 1)).all()
    happened = [Happened(seq=r.seq, at_ns=r.at_ns, actor=r.actor, type=r.type, data=r.data) for r in rows]
    return page(happened, limit, lambda entry: (entry.seq,))


# -- registering --------------------------------------------------------------------------------------------------


def register(lab: Lab, actor: Actor, wanted: Registration) -> Registered:
    """Add a machine, or know it again and take its facts and its new name.

    Raises Conflict when it is like a known machine and unlike it too, or when the name is another machine's.
    """
    actor.need("machines", "register machines")
    return lab.store.write(lambda connection: _register(lab, connection, actor, wanted))


def _register(lab: Lab, connection: Connection, actor: Actor, wanted: Registration) -> Registered:
    found = identity_of(wanted.facts, wanted.inventory) if wanted.facts else Identity()
    known, why = _recognise(connection, wanted, found)
    name = (wanted.name or (wanted.facts and wanted.facts.identity.hostname) or "").lower()
    if known is None and not name:
        what = "these facts do not tell a host name" if wanted.facts else "a machine needs facts or a name"
        raise WrongInput(what, hint="give it one: --name NAME, or the field Name of the page")
    if known is None and (not _NAME.fullmatch(name) or name in _TAKEN):
        raise WrongInput(f"{name!r} cannot be the name of a machine", hint="give it one: letters, digits, - and .")
    if known is None:
        _need_free(connection, name)
        machine_id = str(uuid.uuid4())
        row = {
            "id": machine_id,
            "name": name,
            "site": wanted.site,
            "enclosure_id": find(connection, wanted.enclosure).id if wanted.enclosure else None,
            "owner": actor.name if wanted.owner is None else wanted.owner,
            "team": wanted.team,
            "note": wanted.note,
            "state": "ready",
            "state_since_ns": lab.now(),
            "identity": found.model_dump(mode="json"),
            "policy": _policy(wanted.policy),
            "registered_ns": lab.now(),
        }
        connection.execute(insert(machine).values(row))
        lab.store.event(connection, actor.name, "machine.registered", "machine", machine_id, name=name)
        _set_address(connection, machine_id, wanted.address or "")
        _keep_own_facts(connection, machine_id)
    else:
        machine_id = known.id
        edit = Edit(name=wanted.name, site=wanted.site or None, address=wanted.address)
        _edit(lab, connection, actor, known, edit)
        if known.state == "retired":
            set_state(lab, connection, actor.name, machine_id, "ready", "registered again")
    changes: tuple[Change, ...] = ()
    if wanted.facts:
        changes = take_facts(lab, connection, actor.name, machine_id, wanted.facts, wanted.inventory)
        connection.execute(
            update(machine).where(machine.c.id == machine_id).values(identity=found.model_dump(mode="json"))
        )
    return Registered(
        machine=one(connection, machine_id),
        was="new" if known is None else "known",
        known_as=known.name if known is not None else None,
        why=why,
        changes=changes if known is not None else (),
    )


def _recognise(connection: Connection, wanted: Registration, found: Identity) -> tuple[Any, str]:
    """The row of the machine that this is, and why; None: a new one.  Raises Conflict when only a person can tell."""
    if wanted.same_as:
        return find(connection, wanted.same_as), "as it was told"
    if wanted.new or found.empty:
        return None, ""
    alike = []
    for row in connection.execute(select(machine)):
        likeness = compare(Identity.model_validate(row.identity), found)
        if likeness.verdict != "other":
            alike.append((row, likeness))
    if len(alike) == 1 and alike[0][1].verdict == "same":
        return alike[0][0], alike[0][1].why
    if alike:
        raise Conflict(
            "; ".join(f"this may be {row.name}: {likeness.why}" for row, likeness in alike[:5]),
            hint=f"was a board or card swapped? say same_as {alike[0][0].name}; or say new, if it is another machine",
        )
    return None, ""


def _need_free(connection: Connection, name: str) -> None:
    if connection.scalar(select(func.count()).where(machine.c.name == name)):
        raise Conflict(
            f"there is already a machine {name}", hint="give this one another name, or say same_as, if it is that one"
        )


def update_facts(
    lab: Lab, actor: Actor, name: str, facts: Facts, inventory: Inventory | None = None, *, swapped: bool = False
) -> tuple[Change, ...]:
    """Take new facts of a machine; returns what changed.

    Raises Conflict when they are another machine's, or its board was swapped and ``swapped`` does not say so.
    """

    def change(connection: Connection) -> tuple[Change, ...]:
        row = find(connection, name)
        _need_hand(actor, row, "change")
        known, found = Identity.model_validate(row.identity), identity_of(facts, inventory)
        likeness = Likeness("same") if known.empty or found.empty else compare(known, found)
        if likeness.verdict != "same" and not swapped:
            raise Conflict(
                f"these are not the facts of {row.name}: {likeness.why or 'no serial number and no MAC is the same'}",
                hint="was a board swapped? then say so (swapped)",
            )
        if not found.empty:
            new = found.model_dump(mode="json")
            connection.execute(update(machine).where(machine.c.id == row.id).values(identity=new))
        return take_facts(lab, connection, actor.name, row.id, facts, inventory)

    return lab.store.write(change)


def take_facts(
    lab: Lab, connection: Connection, who: str, machine_id: str, facts: Facts, inventory: Inventory | None
) -> tuple[Change, ...]:
    """Within a change: keep the documents if they differ from the last ones, and their flat facts.

    Does not ask whether they are this machine's.
    """
    parts = {"facts": facts.model_dump(mode="json"), "inventory": inventory and inventory.model_dump(mode="json")}
    document = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    sha256 = hashlib.sha256(document.encode()).hexdigest()
    newest = select(snapshot.c.sha256).where(snapshot.c.machine_id == machine_id).order_by(snapshot.c.id.desc())
    last = connection.scalar(newest.limit(1))
    if sha256 == last:
        return ()
    row = {"machine_id": machine_id, "at_ns": lab.now(), "sha256": sha256, "document": document}
    connection.execute(insert(snapshot).values(row))
    old = {key: values for key, values in _told(connection, machine_id).items()}
    new = flat.flatten(facts, inventory)
    connection.execute(delete(fact).where(fact.c.machine_id == machine_id, *_told_only()))
    _insert_facts(connection, machine_id, new)
    changes = differences(old, new)
    _touch(connection, machine_id)
    lab.store.event(
        connection,
        who,
        "machine.facts",
        "machine",
        machine_id,
        name=connection.scalar(select(machine.c.name).where(machine.c.id == machine_id)),
        first=last is None,
        changes=[change.model_dump(mode="json") for change in changes] if last is not None else [],
    )
    return changes


def differences(old: Flat, new: Flat) -> tuple[Change, ...]:
    """Between two sets of flat facts, by key."""
    changes = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, ()), new.get(key, ())
        gone = tuple(value for value in before if value not in after)
        come = tuple(value for value in after if value not in before)
        if gone or come:
            changes.append(Change(key=key, gone=gone, come=come))
    return tuple(changes)


def _told_only() -> tuple[Any, ...]:
    return fact.c.key.not_in(_OWN), fact.c.key.not_like(f"{flat.OPEN}%")


def _told(connection: Connection, machine_id: str) -> dict[str, tuple[str | int | float, ...]]:
    found: dict[str, list[str | float]] = {}
    for row in connection.execute(select(fact).where(fact.c.machine_id == machine_id, *_told_only())):
        found.setdefault(row.key, []).append(value_of(row.key, row.text, row.num))
    return {key: tuple(values) for key, values in found.items()}


def _insert_facts(connection: Connection, machine_id: str, facts: Mapping[str, Iterable[str | float]]) -> None:
    rows = {(key, flat.text_of(value)): flat.number_of(key, value) for key, values in facts.items() for value in values}
    if rows:
        connection.execute(
            insert(fact),
            [{"machine_id": machine_id, "key": key, "text": text, "num": num} for (key, text), num in rows.items()],
        )


def _keep_own_facts(connection: Connection, machine_id: str) -> None:
    """Flat facts that owners tell: tags, labels, the enclosure, what they allow."""
    row = connection.execute(select(machine).where(machine.c.id == machine_id)).one()
    policy = policy_of(row)
    own: dict[str, tuple[str, ...]] = {"tag": tuple(policy.tags)}
    own |= {f"{flat.OPEN}{name}": (value,) for name, value in policy.labels.items()}
    if policy.lends_boot:
        own["boot.own"] = ("yes",)
    if row.enclosure_id:
        own["enclosure"] = tuple(names(connection, [row.enclosure_id]).values())
    connection.execute(
        delete(fact).where(fact.c.machine_id == machine_id, fact.c.key.in_(_OWN) | fact.c.key.like(f"{flat.OPEN}%"))
    )
    _insert_facts(connection, machine_id, own)


def follow(connection: Connection, machine_id: str) -> None:
    """Within a change: somebody else (a sync) wrote the row's name or enclosure; what searches ask of it follows."""
    for one_id in (machine_id, *connection.scalars(select(machine.c.id).where(machine.c.enclosure_id == machine_id))):
        _keep_own_facts(connection, one_id)


# -- changing -----------------------------------------------------------------------------------------------------


def edit(lab: Lab, actor: Actor, name: str, wanted: Edit, version: int | None = None) -> Machine:
    """Raises Stale, and Conflict when the new name is another machine's."""

    def change(connection: Connection) -> Machine:
        row = find(connection, name)
        _need_hand(actor, row, "change")
        need_version(row.name, version, row.version)
        _edit(lab, connection, actor, row, wanted)
        return one(connection, row.id)

    return lab.store.write(change)


def _edit(lab: Lab, connection: Connection, actor: Actor, row: Any, wanted: Edit) -> None:
    given = wanted.model_dump(exclude_none=True, mode="json")
    values: dict[str, Any] = {key: given[key] for key in ("site", "owner", "team", "note") if key in given}
    if wanted.name and wanted.name.lower() != row.name:
        if wanted.name.lower() in _TAKEN:
            raise WrongInput(f"{wanted.name!r} cannot be the name of a machine", hint="choose another")
        _need_free(connection, wanted.name.lower())
        values["name"] = wanted.name.lower()
    if wanted.enclosure is not None:
        values["enclosure_id"] = _enclosure(connection, row, wanted.enclosure)
    if wanted.policy is not None:
        values["policy"] = _policy(wanted.policy)
    if wanted.address is not None and _set_address(connection, row.id, wanted.address):
        actor.need("machines", "say where the lab logs in")
        lab.store.event(
            connection, actor.name, "machine.address", "machine", row.id, name=row.name, address=wanted.address
        )
    changed = {key: value for key, value in values.items() if value != getattr(row, key)}
    if not changed:
        return
    new = {**changed, "version": row.version + 1}
    connection.execute(update(machine).where(machine.c.id == row.id).values(new))
    told = {key: {"old": getattr(row, key), "new": value} for key, value in changed.items()}
    said = {"name": changed.get("name", row.name), "fields": told}
    lab.store.event(connection, actor.name, "machine.edited", "machine", row.id, **said)
    if {"policy", "enclosure_id"} & set(changed):
        _keep_own_facts(connection, row.id)
    if "name" in changed:
        for inside in connection.scalars(select(machine.c.id).where(machine.c.enclosure_id == row.id)):
            _keep_own_facts(connection, inside)


def _policy(policy: Policy) -> dict[str, Any]:
    """Raises WrongInput."""
    if policy.own_boot and not policy.lends_boot:
        # Asked where it is written: what a later version would not write can be read all the same, and lends nothing.
        raise WrongInput(
            "only a machine that is installed before it is offered, from an image or by network, and that steps do not "
            "take, may be booted from a source of somebody's own",
            hint="the next one would get their system: --image or --netboot, --prepare full, --no-steps",
        )
    return policy.model_dump(mode="json", exclude_defaults=True)


def _enclosure(connection: Connection, row: Any, name: str) -> str | None:
    """Raises WrongInput when a machine would stand in itself."""
    if not name:
        return None
    found = find(connection, name)
    above: Row[Any] | None = found
    steps = 0
    while above is not None and steps < 20:
        if above.id == row.id:
            raise WrongInput(f"{row.name} cannot stand in {found.name}, which stands in {row.name}")
        steps += 1
        parent = above.enclosure_id
        above = connection.execute(select(machine).where(machine.c.id == parent)).first() if parent else None
    return str(found.id)


def _set_address(connection: Connection, machine_id: str, address: str) -> bool:
    """Where the lab reaches it: a virtual host is also switched there.  Whether anything changed."""
    kinds = {"ssh": "ssh"}
    if address.startswith("virtual:"):
        kinds["hypervisor"] = "virtual"
    elif address and not address.startswith("ssh://"):
        raise WrongInput(f"the lab cannot reach {address!r}", hint="ssh://root@HOST[:PORT] or virtual:NAME")
    ours = (endpoint.c.kind == "ssh") | (endpoint.c.driver == "virtual")
    mine = select(endpoint.c.kind, endpoint.c.address).where(endpoint.c.machine_id == machine_id, ours)
    before = {(row.kind, row.address) for row in connection.execute(mine)}
    wanted = {(kind, address) for kind in kinds} if address else set()
    if before == wanted:
        return False
    connection.execute(delete(endpoint).where(endpoint.c.machine_id == machine_id, ours))
    for kind, driver in kinds.items() if address else ():
        row = {"machine_id": machine_id, "kind": kind, "driver": driver, "address": address, "options": {}}
        connection.execute(insert(endpoint).values(row))
    return True


def _touch(connection: Connection, machine_id: str) -> None:
    new = {"version": machine.c.version + 1}
    connection.execute(update(machine).where(machine.c.id == machine_id).values(new))


def _need_hand(actor: Actor, row: Any, what: str) -> None:
    """Its owner, its team, or who looks after all machines."""
    if not actor.may("machines"):
        actor.need("read", f"{what} {row.name}")
        actor.need_own(row.name, row.owner, row.team)


def mark(
    lab: Lab,
    actor: Actor,
    name: str,
    state: State,
    reason: str = "",
    version: int | None = None,
    *,
    installed: bool = False,
) -> Machine:
    """Say that a machine is broken, suspect, off, or ready again.  A claim on it stays; a claimed one stays claimed.

    ``installed``: whoever says so has installed it, so its system is its owner's again.
    """
    if state not in SETTABLE:
        raise WrongInput(f"{state} comes of claims and is not set", hint=f"one of {', '.join(SETTABLE)}")
    if installed and state != "ready":
        raise WrongInput(f"what is {state} is not installed", hint="it is ready when it is")
    if state != "ready" and not reason.strip():
        raise WrongInput(f"why is it {state}?", hint="give a reason: everybody who wants the machine will read it")

    def change(connection: Connection) -> Machine:
        row = find(connection, name)
        _need_hand(actor, row, "judge")
        need_version(row.name, version, row.version)
        if row.state == "retired":
            raise Conflict(f"{row.name} is retired", hint="register it again to bring it back")
        set_state(lab, connection, actor.name, row.id, state, reason)
        if installed:
            theirs = select(claims).where(claims.c.machine_id == row.id, claims.c.state.in_(HELD))
            if (now := connection.execute(theirs).first()) and (now.state == "preparing" or now.boot_source):
                raise Conflict(
                    f"{row.name} is {'prepared for' if now.state == 'preparing' else 'booted by'} {now.holder} now",
                    hint="install it when they are done with it, while you have it: --maintenance",
                )
            set_system(lab, connection, actor.name, row.id, "")
        return one(connection, row.id)

    return lab.store.write(change)


def set_system(
    lab: Lab, connection: Connection, who: str, machine_id: str, system_of: str, medium: str | None = None
) -> None:
    """Within a change: who booted what a machine may have for a system from now on; ``""``: it is its owner's.

    ``medium``: what of theirs may be in its drive; None: what was."""
    row = connection.execute(select(machine).where(machine.c.id == machine_id)).one()
    new = {"system_of": system_of, "medium": row.medium if medium is None else medium}
    if new == {"system_of": row.system_of, "medium": row.medium}:
        return
    connection.execute(update(machine).where(machine.c.id == machine_id).values(new | {"version": row.version + 1}))
    if row.system_of != system_of:
        said = {"name": row.name, "old": row.system_of, "new": system_of}
        lab.store.event(connection, who, "machine.system", "machine", machine_id, **said)


def set_state(lab: Lab, connection: Connection, who: str, machine_id: str, state: State, reason: str = "") -> bool:
    """Within a change.  ``ready`` of a machine that somebody has means claimed (or preparing).  Whether it changed."""
    row = connection.execute(select(machine).where(machine.c.id == machine_id)).one()
    if state == "ready":
        holding = select(claims.c.state).where(claims.c.machine_id == machine_id, claims.c.state.in_(HELD))
        held = connection.scalar(holding)
        state = {"preparing": "preparing", "active": "claimed", None: "ready"}[held]  # type: ignore[assignment]
    if (row.state, row.state_reason) == (state, reason):
        return False
    new: dict[str, Any] = {"state": state, "state_reason": reason, "version": row.version + 1}
    if row.state != state:
        new["state_since_ns"] = lab.now()
    connection.execute(update(machine).where(machine.c.id == machine_id).values(new))
    said = {"name": row.name, "old": row.state, "new": state, "reason": reason}
    lab.store.event(connection, who, "machine.state", "machine", machine_id, **said)
    return True


def retire(lab: Lab, actor: Actor, name: str, reason: str, version: int | None = None) -> Machine:
    """Take a machine out of the pool; its history stays.  Raises Conflict while somebody has it or booked it."""

    def change(connection: Connection) -> Machine:
        row = find(connection, name)
        _need_hand(actor, row, "retire")
        need_version(row.name, version, row.version)
        wanted = select(claims.c.holder).where(
            claims.c.machine_id == row.id, claims.c.state.in_(("waiting", "preparing", "active"))
        )
        holders = sorted(set(connection.scalars(wanted)))
        if holders:
            raise Conflict(
                f"{', '.join(holders)} reserved {row.name}",
                hint=f"`evenkeel lab release {row.name} --reason TEXT` takes it back",
            )
        set_state(lab, connection, actor.name, row.id, "retired", reason)
        return one(connection, row.id)

    return lab.store.write(change)
