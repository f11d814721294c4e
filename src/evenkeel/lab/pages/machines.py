"""Pages of machines: search with facets, one machine with its facts, its picture and history, adding, use."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError

from evenkeel.documents.base import Model
from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.errors import WrongInput
from evenkeel.lab import claims, flat, machines, search, usage
from evenkeel.lab.actor import NotFound
from evenkeel.lab.api.caller import Asked, Caller
from evenkeel.lab.limits import DAY
from evenkeel.lab.machines import Edit, Machine, Policy, Registration
from evenkeel.lab.pages import Nav, back, render
from evenkeel.lab.predicate import PredicateError
from evenkeel.lab.words import fact

router = APIRouter()
NAV = Nav("Machines", "/machines", 10, also=("/use",))
M = TypeVar("M", bound=Model)
Text = Annotated[str, Form(max_length=10_000)]
#: Groups of flat facts on the page of a machine, in this order.
_GROUPS = {
    "Machine": ("arch", "virtual", "vendor", "product", "board", "serial", "firmware", "os", "tag", "label"),
    "Processor": ("cpu", "cache", "resctrl", "clocksource", "vulnerable"),
    "Memory": ("mem", "numa", "hugepage"),
    "Network": ("nic", "mac", "sriov"),
    "Disks": ("disk",),
    "Kernel": ("kernel", "boot", "iommu", "kvm", "cgroup", "program"),
    "PCI": ("pci",),
}
#: Of a key with very many values, so many are shown at once.
_FEW = 12


def made(model: type[M], **values: Any) -> M:
    """What a form says, as a model.  Raises WrongInput that names the field."""
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]).removesuffix("_ns")
        message = str(first["msg"]).removeprefix("Value error, ")
        raise WrongInput(f"{place}: {message}") from None


@router.get("/machines")
def find(request: Request, caller: Caller, q: str = "", after: str | None = None) -> HTMLResponse:
    wrong, found = None, None
    try:
        found = search.find(caller.lab, caller.actor, q, after=after, limit=100)
    except PredicateError as error:
        wrong = error
    kept = search.saved(caller.lab, caller.actor)
    htmx = request.headers.get("HX-Target") == "found"
    return render(
        request,
        "machines/found.html" if htmx else "machines/list.html",
        q=q,
        keys=flat.KEYS,
        found=found,
        wrong=wrong,
        kept=kept,
        not_green=usage.mine_not_green(caller.lab, caller.actor),
        facets=[(facet, [(value, *_toggled(q, value.predicate)) for value in facet.values]) for facet in found.facets]
        if found
        else [],
    )


def _toggled(q: str, term: str) -> tuple[bool, str]:
    """Whether the search has this term already, and the address of the search with it, or without it."""
    pattern = rf"(?<!\S){re.escape(term)}(?!\S)"
    chosen = re.search(pattern, q) is not None
    new = re.sub(r"\s+", " ", re.sub(pattern, "", q)).strip() if chosen else f"{q} {term}".strip()
    return chosen, f"/machines?q={quote(new)}"


@router.post("/machines/search")
def save(
    request: Request, caller: Caller, name: Text, q: Text = "", shared: Annotated[bool, Form()] = False
) -> Response:
    search.save(caller.lab, caller.actor, name, search.Save(predicate=q, shared=shared))
    return back(request, f"/machines?q={quote(q)}")


@router.post("/machines/forget")
def forget(request: Request, caller: Caller, name: Text) -> Response:
    search.forget(caller.lab, caller.actor, name)
    return back(request, "/machines")


@router.get("/machines/add")
def ask_new(request: Request, caller: Caller) -> HTMLResponse:
    caller.actor.need("machines", "register machines")
    return render(request, "machines/add.html")


@router.post("/machines/add")
async def add(
    request: Request,
    caller: Caller,
    name: Text = "",
    site: Text = "",
    owner: Text = "",
    team: Text = "",
    enclosure: Text = "",
    address: Text = "",
    note: Text = "",
    same_as: Text = "",
    new: Annotated[bool, Form()] = False,
    facts: UploadFile | None = None,
    inventory: UploadFile | None = None,
) -> Response:
    from starlette.concurrency import run_in_threadpool

    wanted = made(
        Registration,
        name=name.strip() or None,
        site=site.strip(),
        owner=owner.strip() or None,
        team=team.strip(),
        enclosure=enclosure.strip() or None,
        address=address.strip() or None,
        note=note,
        same_as=same_as.strip() or None,
        new=new,
        facts=await _document(Facts, facts),
        inventory=await _document(Inventory, inventory),
    )
    done = await run_in_threadpool(machines.register, caller.lab, caller.actor, wanted)
    return back(request, f"/machines/{done.machine.name}")


D = TypeVar("D", Facts, Inventory)


async def _document(kind: type[D], file: UploadFile | None) -> D | None:
    data = await file.read() if file is not None else b""
    if not data:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise WrongInput(f"{file.filename if file else ''} is no text", hint="`evenkeel facts -o FILE`") from None
    return kind.from_json(text, file=(file.filename if file else None) or kind.__name__)


@router.get("/use")
def use(request: Request, caller: Caller, q: str = "", days: int = 30, order: usage.Order = "idle") -> HTMLResponse:
    days = min(max(days, 1), 3650)
    start = caller.lab.now() - days * DAY
    pool = usage.use(caller.lab, caller.actor, q, start_ns=start, order=order)
    return render(request, "machines/use.html", pool=pool, q=q, days=days, order=order)


@router.get("/machines/{name}")
def show(request: Request, caller: Caller, name: str) -> HTMLResponse:
    one = machines.get(caller.lab, caller.actor, name)
    told = machines.facts_of(caller.lab, caller.actor, one.name)
    return render(
        request,
        "machines/show.html",
        one=one,
        groups=_groups(told),
        few=_FEW,
        mine=_mine(caller, one),
        claims=claims.listing(caller.lab, caller.actor, state=None, of_machine=one.name, limit=10).items,
        happened=machines.history(caller.lab, caller.actor, one.name, limit=15).items,
        has_facts=bool(one.told),
        limits=caller.lab.settings.reservations,
    )


def _mine(caller: Asked, one: Machine) -> bool:
    """Whether to show the forms that change it; the service functions decide by themselves."""
    return caller.actor.may("machines") or caller.actor.owns(one.owner, one.team)


def _groups(told: dict[str, tuple[str | int | float, ...]]) -> list[tuple[str, list[tuple[str, str, list[str]]]]]:
    groups: list[tuple[str, list[tuple[str, str, list[str]]]]] = []
    for title, prefixes in _GROUPS.items():
        rows = []
        for key, values in told.items():
            known = flat.key(key)
            if key.split(".")[0] in prefixes and known is not None and key not in ("name", "state"):
                rows.append((key, known.what, [fact(key, value) for value in values]))
        if rows:
            groups.append((title, rows))
    return groups


@router.get("/machines/{name}/picture.svg")
def picture(caller: Caller, name: str) -> Response:
    from evenkeel.report.picture import machine_svg

    facts = machines.latest(caller.lab, caller.actor, name).facts
    if not facts.cpus:
        raise NotFound(f"no picture of {name}: its facts have no CPUs")
    return Response(machine_svg(facts), media_type="image/svg+xml")


@router.post("/machines/{name}/state")
def mark(
    request: Request,
    caller: Caller,
    name: str,
    state: Text,
    reason: Text = "",
    installed: Annotated[bool, Form()] = False,
    version: Annotated[int | None, Form()] = None,
) -> Response:
    # Whose system is gone is what the page said, which somebody else's may be by now.
    seen = version if installed else None
    machines.mark(caller.lab, caller.actor, name, state, reason.strip(), seen, installed=installed)  # type: ignore[arg-type]
    return back(request, f"/machines/{quote(name)}")


@router.post("/machines/{name}/edit")
def edit(
    request: Request,
    caller: Caller,
    name: str,
    version: Annotated[int, Form()],
    new_name: Text = "",
    site: Text = "",
    owner: Text = "",
    team: Text = "",
    enclosure: Text = "",
    address: Text = "",
    note: Text = "",
    tags: Text = "",
    users: Text = "",
    teams: Text = "",
    longest: Text = "",
    prepare: Text = "",
    image: Text = "",
    netboot: Text = "",
    own_boot: Annotated[bool, Form()] = False,
    steps: Annotated[bool, Form()] = False,
) -> Response:
    policy = machines.get(caller.lab, caller.actor, name).policy.model_dump(mode="json")
    policy |= {"tags": _words(tags), "users": _words(users), "teams": _words(teams), "steps": steps}
    policy |= {"longest_ns": longest.strip() or None, "prepare": prepare or None, "image": image.strip() or None}
    policy |= {"netboot": netboot.strip() or None, "own_boot": own_boot}
    wanted = made(
        Edit,
        name=new_name.strip() or None,
        site=site.strip(),
        owner=owner.strip(),
        team=team.strip(),
        enclosure=enclosure.strip(),
        address=address.strip(),
        note=note,
        policy=made(Policy, **policy),
    )
    done = machines.edit(caller.lab, caller.actor, name, wanted, version)
    return back(request, f"/machines/{done.name}")


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


@router.post("/machines/{name}/facts")
async def update_facts(
    request: Request, caller: Caller, name: str, facts: UploadFile, swapped: Annotated[bool, Form()] = False
) -> Response:
    from starlette.concurrency import run_in_threadpool

    document = await _document(Facts, facts)
    if document is None:
        raise WrongInput("no file was given", hint="`evenkeel facts MACHINE -o FILE` makes one")
    await run_in_threadpool(machines.update_facts, caller.lab, caller.actor, name, document, swapped=swapped)
    return back(request, f"/machines/{quote(name)}")


@router.post("/machines/{name}/retire")
def retire(request: Request, caller: Caller, name: str, reason: Text = "") -> Response:
    machines.retire(caller.lab, caller.actor, name, reason.strip())
    return back(request, f"/machines/{quote(name)}")
