"""REST of how machines are reached (BMC, PDU, console), and of the passwords for that, which go in and never out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field, SecretStr

from evenkeel.documents.base import Model
from evenkeel.lab import endpoints, secrets
from evenkeel.lab.api.caller import Caller

router = APIRouter(prefix="/api/v1", tags=["endpoints"])
Number = Annotated[int, Field(ge=1, lt=1 << 62)]


class NewSecret(Model):
    user: Annotated[str, Field(max_length=200)] = ""
    password: SecretStr = Field(max_length=1000)


class Rotated(Model):
    """How many secrets were sealed anew."""

    sealed: int


@router.get("/machines/{machine}/endpoints")
def listing(caller: Caller, machine: str) -> list[endpoints.Endpoint]:
    """How a machine is reached."""
    return endpoints.listing(caller.lab, caller.actor, machine)


@router.post("/machines/{machine}/endpoints")
def put(caller: Caller, machine: str, wanted: endpoints.NewEndpoint) -> endpoints.Endpoint:
    """Add one, or replace the one of the same kind and address."""
    return endpoints.put(caller.lab, caller.actor, machine, wanted)


@router.delete("/machines/{machine}/endpoints/{endpoint}", status_code=204)
def remove(caller: Caller, machine: str, endpoint: Number) -> Response:
    """Forget one."""
    endpoints.remove(caller.lab, caller.actor, machine, endpoint)
    return Response(status_code=204)


@router.get("/secrets")
def secret_names(caller: Caller) -> list[secrets.Secret]:
    """Names of secrets and who uses them; needs the scope `secrets`."""
    return secrets.listing(caller.lab, caller.actor)


@router.put("/secrets/{name}")
def set_secret(caller: Caller, name: str, wanted: NewSecret) -> secrets.Secret:
    """Set or replace a user and a password.  No request shows them again."""
    return secrets.put(caller.lab, caller.actor, name, wanted.user, wanted.password.get_secret_value())


@router.delete("/secrets/{name}", status_code=204)
def remove_secret(caller: Caller, name: str) -> Response:
    """Forget one that no endpoint uses."""
    secrets.remove(caller.lab, caller.actor, name)
    return Response(status_code=204)


@router.post("/secrets/rotate")
def rotate(caller: Caller) -> Rotated:
    """Seal all secrets with a new key, and forget the old one."""
    return Rotated(sealed=secrets.rotate(caller.lab, caller.actor))
