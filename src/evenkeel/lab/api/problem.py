"""Errors as answers: ``application/problem+json``, from ours, from FastAPI's and from Starlette's."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab.problem import OF_STATUS, body_of, status_of

_PLACES = ("body", "query", "path", "header")
MEDIA = "application/problem+json"
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}, 507: {"Retry-After": "30"}}


def response(error: EvenkeelError) -> JSONResponse:
    status = status_of(error)
    headers = _HEADERS.get(status)
    return JSONResponse(body_of(error), status, headers, media_type=MEDIA)


def from_validation(error: RequestValidationError) -> WrongInput:
    """What FastAPI found wrong with a request, as one of ours: the first, and the rest in ``others``."""
    found = []
    for problem in error.errors():
        # Where in the request it stood, people need not know; its field they do, by the name that they gave it.
        parts = [str(part) for part in problem["loc"]]
        place = ".".join(parts[1:] if len(parts) > 1 and parts[0] in _PLACES else parts)
        message = str(problem["msg"]).removeprefix("Value error, ")
        found.append(WrongInput(f"{place.removesuffix('_ns')}: {message[:1].lower()}{message[1:]}"))
    first = found[0] if found else WrongInput("the request cannot be read")
    if found[1:]:
        first.others = tuple(found[1:])  # type: ignore[attr-defined]
    return first


def from_http(error: HTTPException) -> EvenkeelError:
    """What Starlette refuses by itself: no such path, no such method."""
    words = {404: "there is nothing at this address", 405: "this address does not take that method"}
    made = OF_STATUS.get(error.status_code, EvenkeelError)(words.get(error.status_code, str(error.detail)))
    made.http_status = error.status_code  # type: ignore[attr-defined]
    return made
