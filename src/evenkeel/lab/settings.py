"""What a lab is told by its owner: the settings file.

One YAML file, read like a site file: units, unknown keys refused, line and column for all that is wrong.  Each key
has a default, so that no file is needed.  Nothing here touches the database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.errors import Where, WrongInput
from evenkeel.lab.limits import Limits
from evenkeel.lab.place import SYSTEM_FOLDER
from evenkeel.lab.retention import DAY_NS, EVENTS_NS, ArtifactRetention, LogRetention, ResultRetention
from evenkeel.plan.sitefile import parse_as

SYSTEM_FILE = Path("/etc/evenkeel/lab.yaml")
Role = Literal["viewer", "user", "maintainer", "admin"]
_HOUR = 3_600 * 10**9


class Oidc(Model):
    """How people log in.  ``issuer``: as in its discovery document; the secret stands in a file of its own.

    ``groups``: the claim that lists a person's groups; ``roles``: group -> role; ``teams``: groups that are teams here.
    ``role``: of those whose groups give none; without it they are refused.  ``link_local``: who is called like a user
    of the service's machine is that user; without it such a log-in is refused.
    """

    issuer: str
    client_id: str
    client_secret_file: str | None = None
    scopes: str = "openid profile email"
    name: str = "preferred_username"
    groups: str = "groups"
    roles: dict[str, Role] = {}
    teams: tuple[str, ...] = ()
    role: Role | None = None
    link_local: bool = False


class Settings(Model):
    """``listen``: address and port of the pages; ``url``: what people type, when a proxy stands before it.

    ``database``: PostgreSQL of a team; without it SQLite in the folder.  ``local_role``: of users of this machine
    that come by the Unix socket; root and the user of the service are admins.  It is ``viewer``: whoever submits a step
    runs it on the agent of this machine as the user of the service.  ``credits``: for urgent work, of each
    person in each month; ``shares``: team -> its part of the queue, 1 when not named.  ``reservations``: their limits;
    ``artifacts``, ``logs``, ``results``: how long they are kept; ``events``: for how long the one log is.
    ``agent_slots``: of the agent on the service's machine, one a CPU when left out; 0: there is none.
    """

    listen: str = "127.0.0.1:8787"
    url: str | None = None
    database: str | None = None
    local_role: Role = "viewer"
    session: Nanoseconds = 12 * _HOUR
    credits: Annotated[int, Field(ge=0)] = 3
    agent_slots: Annotated[int, Field(ge=0)] | None = None
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    oidc: Oidc | None = None
    reservations: Limits = Limits()
    artifacts: ArtifactRetention = ArtifactRetention()
    logs: LogRetention = LogRetention()
    results: ResultRetention = ResultRetention()
    events: Nanoseconds = Field(default=EVENTS_NS, ge=DAY_NS)

    @field_validator("listen")
    @classmethod
    def _is_address(cls, text: str) -> str:
        address_of(text)
        return text

    @field_validator("url")
    @classmethod
    def _is_url(cls, text: str | None) -> str | None:
        if text is not None and (urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname):
            raise ValueError(f"{text!r} is no address of a web site; as in https://lab.example.org")
        return text.rstrip("/") if text else None


def address_of(listen: str) -> tuple[str, int]:
    """``127.0.0.1:8787``, ``[::1]:8787``, ``:8787`` (all) -> host and port.  Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{listen!r} is no address with a port; as in 127.0.0.1:8787")
    return host.strip("[]") or "::", int(port)


def read(path: Path) -> Settings:
    """Raises WrongInput with line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongInput(f"the settings cannot be read: {error}", where=Where(str(path))) from None
    return parse_as(Settings, text, str(path))


def with_given(chosen: Settings, given: dict[str, str]) -> Settings:
    """Options of the command line, which count more than the file.  Raises WrongInput."""
    try:
        return Settings.model_validate(chosen.model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise WrongInput(f"--{first['loc'][0]}: {message}") from None


def find(folder: Path) -> Path | None:
    """The settings file of the lab in ``folder``: ``lab.yaml`` there; of the machine's lab in /etc."""
    place = SYSTEM_FILE if folder == SYSTEM_FOLDER else folder / "lab.yaml"
    return place if place.exists() else None
