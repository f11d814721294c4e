"""Who asks, and what that person or token may do.  Pure: no database, no request.

Every service function takes an :class:`Actor` and asks it; handlers and pages never decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from evenkeel.errors import EvenkeelError

#: Role -> scopes.  A token has the scopes that it was made with, and of those only what its principal has.
ROLES: dict[str, frozenset[str]] = {
    "viewer": frozenset({"read"}),
    "user": frozenset({"read", "reserve", "submit", "power", "console"}),
    "maintainer": frozenset({"read", "reserve", "submit", "power", "console", "machines", "netbox"}),
    # Of services that run agents: they take steps, and bring and fetch files for them.
    "agent": frozenset({"read", "submit", "agent"}),
    "admin": frozenset(
        {"read", "reserve", "submit", "power", "console", "machines", "netbox", "agent", "secrets", "people"}
        | {"anything"}
    ),
}
SCOPES = frozenset().union(*ROLES.values())


class Forbidden(EvenkeelError):
    """May not.  HTTP 403."""


class NotFound(EvenkeelError):
    """No such thing.  HTTP 404."""


class Conflict(EvenkeelError):
    """It is not in the state that this needs, or somebody changed it meanwhile.  HTTP 409."""


class Stale(Conflict):
    """The version that the change was made for is no longer the current one.  HTTP 412."""


class NotLoggedIn(EvenkeelError):
    """Nobody knows who asks.  HTTP 401; a page leads to the log-in."""


def need_version(what: str, wanted: int | None, current: int) -> None:
    """For service functions, inside the change.  Raises Stale."""
    if wanted is not None and wanted != current:
        raise Stale(
            f"{what} was changed meanwhile (version {current}, not {wanted})", hint="look at it again, then decide"
        )


@dataclass(frozen=True)
class Actor:
    """``name``: of the principal.  ``via``: ``socket``, ``session``, ``token NAME`` or ``service``: for the audit."""

    name: str
    scopes: frozenset[str]
    teams: frozenset[str] = field(default_factory=frozenset)
    via: str = "service"

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "anything" in self.scopes

    def need(self, scope: str, what: str, *also: str) -> None:
        """Raises Forbidden when it may not do ``what`` (``"reserve machines"``).  ``also``: scopes that do as well."""
        if not any(map(self.may, (scope, *also))):
            raise Forbidden(
                f"{self.name} may not {what}", hint=f"it needs the scope {scope!r}; ask an admin of the lab"
            )

    def owns(self, holder: str, team: str = "") -> bool:
        """Whether something held by ``holder`` (or a team) is this actor's to change."""
        return holder == self.name or (bool(team) and team in self.teams) or "anything" in self.scopes

    def need_own(self, what: str, holder: str, team: str = "") -> None:
        if not self.owns(holder, team):
            raise Forbidden(f"{what} belongs to {holder or team}, not to {self.name}", hint=f"ask {holder or team}")


def with_roles(name: str, roles: Iterable[str], teams: Iterable[str] = (), via: str = "service") -> Actor:
    scopes = frozenset[str]().union(*(ROLES.get(role, frozenset()) for role in roles))
    return Actor(name, scopes, frozenset(teams), via)


#: The service itself: time-outs, health, the dispatcher.
SERVICE = Actor("lab", frozenset({"anything", *SCOPES}))
