"""REST of machines: search with facets, kept searches, registration by facts, changes, history, use."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from evenkeel.documents.base import Model
from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.lab import claims, machines, search, usage
from evenkeel.lab.api.caller import Caller
from evenkeel.lab.api.conventions import After, Limit, NeededVersion, Version, set_etag
from evenkeel.lab.machines import Change, Edit, Happened, Machine, Registered, Registration, Snapshot
from evenkeel.lab.paging import DEFAULT, Page
from evenkeel.lab.search import Found, Save, Saved

router = APIRouter(prefix="/api/v1", tags=["machines"])
Name = Annotated[str, Path(max_length=100, description="Name or id of a machine.")]
Q = Annotated[str, Query(max_length=4000, description="A predicate, as in `cpu.flag:avx512f mem>=256GiB`.")]
Moment = Annotated[int | None, Query(ge=0, lt=1 << 62)]


class NewFacts(Model):
    """Of a machine, as the probe wrote them.  ``swapped``: its board was swapped; it is the same all the same."""

    facts: Facts
    inventory: Inventory | None = None
    swapped: bool = False


class Mark(Model):
    state: Literal["ready", "suspect", "broken", "off"]
    reason: Annotated[str, Field(max_length=2000)] = ""
    installed: bool = Field(
        default=False, description="with ready: one has installed it, so nothing of a holder's is left"
    )


class Retire(Model):
    reason: Annotated[str, Field(max_length=2000)] = ""


@router.get("/machines")
def find(caller: Caller, q: Q = "", facets: bool = True, after: After = None, limit: Limit = DEFAULT) -> Found:
    """Machines that are as `q` says, by name, and what else they are: facets."""
    return search.find(caller.lab, caller.actor, q, facets=facets, after=after, limit=limit)


@router.post("/machines", status_code=201)
def register(caller: Caller, wanted: Registration, response: Response) -> Registered:
    """Add a machine, or know it again by its serial numbers and MAC addresses (200)."""
    done = machines.register(caller.lab, caller.actor, wanted)
    if done.was == "known":
        response.status_code = 200
    set_etag(response, done.machine.version)
    return done


@router.get("/machines/{name}")
def get(caller: Caller, name: Name, response: Response) -> Machine:
    found = machines.get(caller.lab, caller.actor, name)
    set_etag(response, found.version)
    return found


@router.patch("/machines/{name}")
def edit(caller: Caller, name: Name, wanted: Edit, version: NeededVersion, response: Response) -> Machine:
    """Change what is given; what is left out stays."""
    found = machines.edit(caller.lab, caller.actor, name, wanted, version)
    set_etag(response, found.version)
    return found


@router.get("/machines/{name}/facts")
def facts(caller: Caller, name: Name) -> dict[str, tuple[str | int | float, ...]]:
    """Everything that a search can ask of it, by key."""
    return machines.facts_of(caller.lab, caller.actor, name)


@router.post("/machines/{name}/facts")
def update_facts(caller: Caller, name: Name, new: NewFacts) -> tuple[Change, ...]:
    """Take new facts; answers with what changed."""
    return machines.update_facts(caller.lab, caller.actor, name, new.facts, new.inventory, swapped=new.swapped)


@router.get("/machines/{name}/snapshot")
def snapshot(caller: Caller, name: Name) -> Snapshot:
    """The documents of the probe, as it wrote them last."""
    return machines.latest(caller.lab, caller.actor, name)


@router.get("/machines/{name}/history")
def history(caller: Caller, name: Name, after: After = None, limit: Limit = 50) -> Page[Happened]:
    return machines.history(caller.lab, caller.actor, name, after=after, limit=limit)


@router.get("/machines/{name}/claims")
def machine_claims(caller: Caller, name: Name, after: After = None, limit: Limit = 50) -> Page[claims.Claim]:
    """Who had it, has it, and booked it; newest first."""
    return claims.listing(caller.lab, caller.actor, state=None, of_machine=name, after=after, limit=limit)


@router.post("/machines/{name}/state")
def mark(caller: Caller, name: Name, wanted: Mark, version: Version, response: Response) -> Machine:
    """Say that it is broken, suspect, off, or ready again."""
    found = machines.mark(
        caller.lab, caller.actor, name, wanted.state, wanted.reason, version, installed=wanted.installed
    )
    set_etag(response, found.version)
    return found


@router.post("/machines/{name}/retire")
def retire(caller: Caller, name: Name, wanted: Retire, version: Version) -> Machine:
    """Take it out of the pool; its history stays."""
    return machines.retire(caller.lab, caller.actor, name, wanted.reason, version)


@router.get("/use")
def use(
    caller: Caller, q: Q = "", start_ns: Moment = None, end_ns: Moment = None, order: usage.Order = "idle"
) -> usage.Pool:
    """How machines were used within a time, the last 30 days if none is given."""
    return usage.use(caller.lab, caller.actor, q, start_ns=start_ns, end_ns=end_ns, order=order)


@router.get("/use/not-green")
def not_green(caller: Caller) -> list[usage.Use]:
    """Machines of one's own, or of one's teams, that are suspect, broken or off."""
    return usage.mine_not_green(caller.lab, caller.actor)


@router.get("/searches")
def searches(caller: Caller) -> list[Saved]:
    """One's own kept searches, and those that others share."""
    return search.saved(caller.lab, caller.actor)


@router.put("/searches/{name}")
def save(caller: Caller, name: Annotated[str, Path(max_length=100)], wanted: Save) -> Saved:
    return search.save(caller.lab, caller.actor, name, wanted)


@router.delete("/searches/{name}", status_code=204)
def forget(caller: Caller, name: Annotated[str, Path(max_length=100)]) -> None:
    search.forget(caller.lab, caller.actor, name)
