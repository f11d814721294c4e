"""What iPXE asks of the lab: two small scripts, for machines that have no system yet, and so no name and no token.

Not below /api and not in its contract: the other side is firmware.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse

from evenkeel.lab.lab import Lab
from evenkeel.lab.netboot_offers import ASK

router = APIRouter(include_in_schema=False)


@router.get("/boot.ipxe", response_class=PlainTextResponse)
def ask() -> str:
    """What DHCP names."""
    return ASK


@router.get("/boot/{mac}", response_class=PlainTextResponse)
def boot(request: Request, mac: str) -> str:
    lab: Lab = request.app.state.lab
    return lab.netboots.script_for(mac)
