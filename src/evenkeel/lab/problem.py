"""Errors as problem documents (RFC 9457) and back: the class tree of Evenkeel, its HTTP status, and the JSON between.

``title`` is the class, ``detail`` the message; ``hint``, ``where`` and ``others`` are ours.  A class of its own status
has ``http_status``.  No web framework here: the command line reads these too, and should start fast.
"""

from __future__ import annotations

from typing import Any, NoReturn

from evenkeel.errors import EvenkeelError, NotAsWanted, Unreachable, Where, WrongInput
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, NotLoggedIn, Stale

#: The nearest class counts.
STATUS: dict[type[EvenkeelError], int] = {
    NotLoggedIn: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    NotAsWanted: 409,
    Stale: 412,
    WrongInput: 422,
    Unreachable: 502,
    EvenkeelError: 500,
}
_CLASSES = {class_.__name__: class_ for class_ in STATUS}


class NotNow(Unreachable):
    """The lab answers, and cannot do it now: its database is away, its disk is full.  It may in a while."""


#: What a status means that comes without a class of ours.
OF_STATUS = (
    {400: WrongInput, 405: WrongInput, 413: WrongInput, 428: WrongInput, 429: Conflict}
    | {status: class_ for class_, status in STATUS.items() if class_ is not NotAsWanted}
    | {503: NotNow, 507: NotNow}
)


def status_of(error: EvenkeelError) -> int:
    own = getattr(error, "http_status", None)
    if isinstance(own, int):
        return own
    return next((STATUS[class_] for class_ in type(error).__mro__ if class_ in STATUS), 500)


def body_of(error: EvenkeelError) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": type(error).__name__,
        "status": status_of(error),
        "detail": error.message,
    }
    if error.hint:
        body["hint"] = error.hint
    if error.where:
        body["where"] = {"file": error.where.file, "line": error.where.line, "column": error.where.column}
    if others := getattr(error, "others", ()):
        body["others"] = [body_of(other) for other in others]
    return body


def raise_problem(status: int, body: Any, where: str) -> NoReturn:
    """Raise what a problem document says.  ``where``: which service answered, for answers that are none of ours."""
    if not isinstance(body, dict) or "detail" not in body:
        raise EvenkeelError(f"{where} answered {status}", hint="is an Evenkeel lab there, and of this version?")
    class_ = _CLASSES.get(str(body.get("title"))) or OF_STATUS.get(status, EvenkeelError)
    place = body.get("where")
    made = class_(
        str(body["detail"]),
        where=Where(place["file"], place.get("line"), place.get("column")) if place else None,
        hint=body.get("hint"),
    )
    if others := body.get("others"):
        made.others = tuple(  # type: ignore[attr-defined]
            _CLASSES.get(str(other.get("title")), WrongInput)(str(other.get("detail"))) for other in others
        )
    raise made
