"""Errors as HTTP: the class tree of Evenkeel to a status, and to ``application/problem+json`` (RFC 9457).

``title`` is the class, ``detail`` the message; ``hint``, ``where`` and ``others`` are ours.
:func:`raise_problem` is the way back, for the client.
"""

from __future__ import annotations

from typing import Any, NoReturn

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from evenkeel.errors import EvenkeelError, NotAsWanted, Unreachable, Where, WrongInput
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, NotLoggedIn, Stale
from evenkeel.lab.store import StoreClosed

MEDIA = "application/problem+json"
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
    StoreClosed: 503,
    EvenkeelError: 500,
}
_CLASSES = {class_.__name__: class_ for class_ in STATUS}
_OF_STATUS = {400: WrongInput, 405: WrongInput, 413: WrongInput, 428: WrongInput, 429: Conflict} | {
    status: class_ for class_, status in STATUS.items() if class_ is not NotAsWanted
}


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


def response(error: EvenkeelError) -> JSONResponse:
    status = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body_of(error), status, headers, media_type=MEDIA)


def from_validation(error: RequestValidationError) -> WrongInput:
    """What FastAPI found wrong with a request, as one of ours: the first, and the rest in ``others``."""
    found = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        message = str(problem["msg"])
        found.append(WrongInput(f"{place}: {message[:1].lower()}{message[1:]}", where=Where(place)))
    first = found[0] if found else WrongInput("the request cannot be read")
    if found[1:]:
        first.others = tuple(found[1:])  # type: ignore[attr-defined]
    return first


def from_http(error: HTTPException) -> EvenkeelError:
    """What Starlette refuses by itself: no such path, no such method."""
    words = {404: "there is nothing at this address", 405: "this address does not take that method"}
    made = _OF_STATUS.get(error.status_code, EvenkeelError)(words.get(error.status_code, str(error.detail)))
    made.http_status = error.status_code  # type: ignore[attr-defined]
    return made


def raise_problem(status: int, body: Any, where: str) -> NoReturn:
    """Raise what a problem document says.  ``where``: which service answered, for answers that are none of ours."""
    if not isinstance(body, dict) or "detail" not in body:
        raise EvenkeelError(f"{where} answered {status}", hint="is an Evenkeel lab there, and of this version?")
    class_ = _CLASSES.get(str(body.get("title"))) or _OF_STATUS.get(status, EvenkeelError)
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
