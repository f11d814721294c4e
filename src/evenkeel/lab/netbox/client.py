"""NetBox's REST API, as much of it as the lab needs.  Knows HTTP and NetBox's forms; decides nothing.

Lists are read in pages of :data:`PAGE` by offset, ordered by id: the ``next`` links carry the host name that NetBox
believes to have.  A change is a PATCH of one field with If-Match, which NetBox answers since 4.6 with 412 when the
object changed meanwhile; older ones ignore the header and lose updates (both measured), so they are refused.
Sources: NetBox's docs/integrations/rest-api.md, netbox/api/viewsets, release notes of 4.2 (MAC addresses are objects),
4.5 (tokens of version 2) and 4.6 (ETag).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from evenkeel.errors import EvenkeelError, Unreachable, WrongInput
from evenkeel.lab.actor import Conflict, NotFound

#: 200 to 1000 are equally fast (measured); below that it is slower.
PAGE = 500
#: Ids that are asked for at once: they stand in the address, which servers limit to some 4,000 characters.
IN_ADDRESS = 100
#: The first release that compares If-Match.
SAFE = (4, 6)
#: Of a device, all that is read: the rendered context is what costs (2.3 s against 1.3 s for 630 devices).
DEVICES = {"exclude": "config_context"}
Object = dict[str, Any]


class Refused(EvenkeelError):
    """NetBox understood and said no: a field it does not have, a token that may not."""


class Changed(Conflict):
    """The object was changed in NetBox since it was read (HTTP 412)."""


class NetBox:
    """``token``: of version 1 (40 characters) or 2 (``nbt_KEY.TOKEN``).  ``ca``: a PEM file, where it needs its own."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise WrongInput(f"{url!r} is no address of a NetBox", hint="https://netbox.example.org")
        scheme = "Bearer" if token.startswith("nbt_") else "Token"
        self.url = url.rstrip("/").removesuffix("/api")
        verify: Any = True
        if ca:
            import ssl

            verify = ssl.create_default_context(cafile=ca)
        self._http = httpx.Client(
            base_url=self.url + "/api/",
            headers={"Authorization": f"{scheme} {token}", "Accept": "application/json"},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            transport=transport or httpx.HTTPTransport(verify=verify, retries=1),
        )

    def __enter__(self) -> NetBox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def version(self) -> tuple[int, ...]:
        """As ``(4, 6, 8)``."""
        text = str(self._get("status/").json()["netbox-version"])
        return tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())

    def all(self, path: str, **query: Any) -> Iterator[Object]:
        """Every object of a list (``"dcim/devices"``), in order of id, a page at a time."""
        offset = 0
        while True:
            page = self._get(f"{path}/", **query, limit=PAGE, offset=offset, ordering="id").json()
            yield from page["results"]
            offset += len(page["results"])
            if not page["results"] or not page["next"]:
                return

    def devices(self, **query: Any) -> Iterator[Object]:
        return self.all("dcim/devices", **DEVICES, **query)

    def devices_of(self, numbers: Sequence[int]) -> Iterator[Object]:
        """These, by id; one that is not there is left out."""
        for at in range(0, len(numbers), IN_ADDRESS):
            yield from self.devices(id=list(numbers[at : at + IN_ADDRESS]))

    def device(self, number: int) -> tuple[Object, str] | None:
        """The device and its ETag, which is empty before 4.6; None when there is none of this number."""
        return self.one("dcim/devices", number, **DEVICES)

    def one(self, path: str, number: int, **query: Any) -> tuple[Object, str] | None:
        try:
            answer = self._get(f"{path}/{number}/", **query)
        except NotFound:
            return None
        return answer.json(), answer.headers.get("ETag", "")

    def interfaces(self, *devices: int) -> list[Object]:
        """With ``mac_addresses``, a list of objects with id and mac_address, since 4.2."""
        return list(self.all("dcim/interfaces", device_id=list(devices)))

    def changes(self, device: int) -> list[Object]:
        """What NetBox logged of a device, newest first: user, time, data before and after."""
        query = {"changed_object_type": "dcim.device", "changed_object_id": device, "ordering": "-time", "limit": 50}
        return list(self._get("core/object-changes/", **query).json()["results"])

    # -- writing --------------------------------------------------------------------------------------------------

    def writable(self, *, force: bool = False) -> None:
        """Raises Refused when this NetBox cannot tell a lost update, unless ``force``."""
        found = self.version()
        if found[:2] < SAFE and not force:
            raise Refused(
                f"NetBox {'.'.join(map(str, found))} cannot say that an object changed meanwhile: writing could lose "
                "somebody's edit",
                hint="NetBox 4.6 can; or set `write-to-old: true`, and keep people from editing during a push",
            )

    def patch(self, path: str, number: int, body: Mapping[str, Any], etag: str) -> tuple[Object, str]:
        """Change what is in ``body`` and nothing else; returns the object and its new ETag.  Raises Changed."""
        answer = self._ask("PATCH", f"{path}/{number}/", json=dict(body), headers={"If-Match": etag} if etag else {})
        return answer.json(), answer.headers.get("ETag", "")

    def create(self, path: str, body: Mapping[str, Any]) -> Object:
        made: Object = self._ask("POST", f"{path}/", json=dict(body)).json()
        return made

    # -- HTTP -----------------------------------------------------------------------------------------------------

    def _get(self, path: str, **query: Any) -> httpx.Response:
        return self._ask("GET", path, params=query)

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"NetBox at {self.url} does not answer: {error or type(error).__name__}",
                hint="is the address right, and does it answer from this machine?",
            ) from None
        if answer.is_success:
            return answer
        told = _told(answer)
        if answer.status_code == httpx.codes.PRECONDITION_FAILED:
            raise Changed(f"somebody changed {path.strip('/')} in NetBox meanwhile", hint="look again and repeat")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(f"NetBox has no {path.strip('/')}")
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Refused(
                f"NetBox does not let this token {method} {path.strip('/')}: {told}",
                hint="its user needs permission to view devices and interfaces; to push, to change and add them",
            )
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Unreachable(f"NetBox at {self.url} answers {answer.status_code}: {told}", hint="see NetBox's log")
        raise Refused(f"NetBox refuses to {method} {path.strip('/')}: {told}")


def _told(answer: httpx.Response) -> str:
    """What NetBox says went wrong: ``{"detail": ...}`` or field -> messages."""
    try:
        body = answer.json()
    except ValueError:
        return answer.reason_phrase
    if isinstance(body, dict) and "detail" in body:
        return str(body["detail"])
    if isinstance(body, dict):
        return "; ".join(f"{name}: {' '.join(map(str, m)) if isinstance(m, list) else m}" for name, m in body.items())
    return str(body)[:200]
