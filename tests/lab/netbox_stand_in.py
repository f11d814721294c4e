"""A stand-in for NetBox, which no package registry has: answers as NetBox 4.6.8 was measured and read to answer.

What it does like the real one: tokens of version 1 and 2; lists with count, next and results, limit and offset,
ordering, filters by id, name, device_id and last_updated__gte; nested objects; weak ETags made of last_updated, 412 for
a stale If-Match (below 4.6: no ETag, and If-Match is ignored); custom fields that are all listed, merged on PATCH, and
refused when unknown; MAC addresses as objects of their own; object changes with the data before and after; webhooks
with X-Hook-Signature.  What it does not do: permissions, validation, most models.  :meth:`Stand.answer` is the whole
of it; :func:`serve` puts it on a socket.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from tests.lab.serving import answering

V1 = "0123456789abcdef0123456789abcdef01234567"
V2 = "nbt_abcdefghijkl.0123456789012345678901234567890123456789"
Object = dict[str, Any]
Answer = tuple[int, dict[str, str], Any]

#: Fields that hold another object: where that one is listed.
_NESTED = {
    "site": "dcim/sites",
    "platform": "dcim/platforms",
    "device": "dcim/devices",
    "parent_device": "dcim/devices",
    "primary_mac_address": "dcim/mac-addresses",
}
_MODEL = {"dcim/devices": "device", "dcim/interfaces": "interface", "dcim/mac-addresses": "macaddress"}
_BLANK: dict[str, Object] = {
    "dcim/devices": {"serial": "", "platform": None, "site": None, "parent_device": None, "custom_fields": {}},
    "dcim/interfaces": {"primary_mac_address": None, "type": "other", "custom_fields": {}},
    "dcim/mac-addresses": {"assigned_object_type": None, "assigned_object_id": None},
    "dcim/platforms": {},
    "dcim/sites": {},
}


class Stand:
    """``custom``: names of custom fields of devices.  ``crash``: called before each write, may raise."""

    def __init__(
        self, version: str = "4.6.8", custom: tuple[str, ...] = ("lab_owner", "lab_team", "memory_gib")
    ) -> None:
        self.version, self.custom = version, custom
        self.tables: dict[str, dict[int, Object]] = {path: {} for path in _BLANK}
        self.changes: list[Object] = []
        self.requests: list[tuple[str, str]] = []
        self.webhooks: list[tuple[Callable[[bytes, dict[str, str]], None], str]] = []
        self.at = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
        self.lock = threading.RLock()

    # -- by hand, as a person at NetBox's pages -------------------------------------------------------------------

    def add(self, path: str, **values: Any) -> int:
        return int(self._create(path, values)["id"])

    def set(self, path: str, number: int, **values: Any) -> None:
        self._change(path, number, values)

    def device(self, name: str | None, **values: Any) -> int:
        return self.add("dcim/devices", name=name, **values)

    def remove(self, path: str, number: int) -> None:
        with self.lock:
            gone = self._shown(path, number)
            del self.tables[path][number]
            self._log("delete", path, number, gone, None)
            self._hook("deleted", path, gone)

    def shown(self, number: int) -> Object:
        return self._shown("dcim/devices", number)

    # -- HTTP -----------------------------------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: Mapping[str, list[str]], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        with self.lock:
            self.requests.append((method, path))
            if (refused := self._unknown(headers)) is not None:
                return refused
            path = path.removeprefix("/api/").strip("/")
            if path == "status":
                return 200, {}, {"netbox-version": self.version.split("-")[0], "netbox-full-version": self.version}
            if path == "core/object-changes":
                return 200, {}, self._page(path, self._logged(query), query)
            head, _, tail = path.rpartition("/")
            if path in self.tables:
                return self._list(method, path, query, body)
            if head in self.tables and tail.isdigit() and int(tail) in self.tables[head]:
                return self._detail(method, head, int(tail), headers, body)
            return 404, {}, {"detail": "No Device matches the given query."}

    def transport(self) -> httpx.MockTransport:
        """The same without a socket, for tests that ask a thousand times."""

        def handle(request: httpx.Request) -> httpx.Response:
            url = urlsplit(str(request.url))
            headers = {name.title(): value for name, value in request.headers.items()}
            status, told, data = self.answer(request.method, url.path, parse_qs(url.query), headers, request.content)
            return httpx.Response(status, headers=told, json=data)

        return httpx.MockTransport(handle)

    def _unknown(self, headers: Mapping[str, str]) -> Answer | None:
        given = headers.get("Authorization", "")
        if not given:
            return 403, {}, {"detail": "Authentication credentials were not provided."}
        if given in (f"Token {V1}", f"Bearer {V2}"):
            return None
        return 403, {}, {"detail": f"Invalid v{2 if 'nbt_' in given else 1} token"}

    def _list(self, method: str, path: str, query: Mapping[str, list[str]], body: bytes) -> Answer:
        if method == "POST":
            given = json.loads(body)
            if (wrong := self._wrong(path, given)) is not None:
                return wrong
            made = self._create(path, given)
            return 201, self._etag(made), made
        found = [self._shown(path, number) for number in sorted(self.tables[path])]
        for name, wanted in query.items():
            if name == "last_updated__gte":
                found = [
                    o for o in found if datetime.fromisoformat(o["last_updated"]) >= datetime.fromisoformat(wanted[0])
                ]
            elif name in ("id", "name"):
                found = [o for o in found if str(o[name]) in wanted]
            elif name == "device_id":
                found = [o for o in found if str(o["device"]["id"]) in wanted]
        if "config_context" not in query.get("exclude", []) and path == "dcim/devices":
            found = [o | {"config_context": {}} for o in found]
        return 200, {}, self._page(path, found, query)

    def _page(self, path: str, found: list[Object], query: Mapping[str, list[str]]) -> Object:
        limit = min(int(query.get("limit", ["50"])[0]) or 1000, 1000)
        offset = int(query.get("offset", ["0"])[0])
        more = offset + limit < len(found)
        after = urlencode({"limit": limit, "offset": offset + limit})
        # The host name that NetBox believes to have is often not the one that it was asked by.
        url = f"http://netbox.invalid/api/{path}/?{after}"
        return {"count": len(found), "next": url if more else None, "results": found[offset : offset + limit]}

    def _detail(self, method: str, path: str, number: int, headers: Mapping[str, str], body: bytes) -> Answer:
        if method == "GET":
            shown = self._shown(path, number)
            return 200, self._etag(shown), shown
        if method != "PATCH":
            return 405, {}, {"detail": f'Method "{method}" not allowed.'}
        etag = self._etag(self._shown(path, number)).get("ETag")
        wanted = headers.get("If-Match")
        if etag and wanted and wanted != "*" and etag not in [one.strip() for one in wanted.split(",")]:
            return 412, {"ETag": etag}, {"detail": "Precondition failed."}
        given = json.loads(body)
        if (wrong := self._wrong(path, given)) is not None:
            return wrong
        self._change(path, number, given)
        shown = self._shown(path, number)
        return 200, self._etag(shown), shown

    def _wrong(self, path: str, given: Object) -> Answer | None:
        if path == "dcim/devices":
            for name in given.get("custom_fields", {}):
                if name not in self.custom:
                    return 400, {}, {"__all__": [f"Unknown field name '{name}' in custom field data."]}
            if "serial" in given and given["serial"] is None:
                return 400, {}, {"serial": ["This field may not be null."]}
        for name, table in _NESTED.items():
            if given.get(name) is not None and self._find(table, given[name]) is None:
                return 400, {}, {name: [f"Related object not found using the provided attributes: {given[name]}"]}
        return None

    def _etag(self, shown: Object) -> dict[str, str]:
        if tuple(map(int, self.version.split(".")[:2])) < (4, 6):
            return {}
        return {"ETag": f'W/"{datetime.fromisoformat(shown["last_updated"]).isoformat()}"'}

    # -- the objects ----------------------------------------------------------------------------------------------

    def _find(self, path: str, wanted: Any) -> int | None:
        table = self.tables[path]
        if isinstance(wanted, int):
            return wanted if wanted in table else None
        matching = [n for n, o in table.items() if all(o.get(name) == value for name, value in wanted.items())]
        return matching[0] if len(matching) == 1 else None

    def _stored(self, values: Mapping[str, Any]) -> Object:
        stored = dict(values)
        for name, table in _NESTED.items():
            if stored.get(name) is not None:
                stored[name] = self._find(table, stored[name])
        return stored

    def _create(self, path: str, values: Mapping[str, Any]) -> Object:
        with self.lock:
            number = max(self.tables[path], default=0) + 1
            blank = copy.deepcopy(_BLANK[path])
            self.tables[path][number] = blank | {"id": number} | self._stored(values) | {"last_updated": self._stamp()}
            shown = self._shown(path, number)
            self._log("create", path, number, None, shown)
            self._hook("created", path, shown)
            return shown

    def _change(self, path: str, number: int, values: Mapping[str, Any]) -> None:
        with self.lock:
            before, row = self._shown(path, number), self.tables[path][number]
            merged = {**row.get("custom_fields", {}), **values.get("custom_fields", {})}
            row.update(self._stored(values))
            if "custom_fields" in row:
                row["custom_fields"] = merged
            row["last_updated"] = self._stamp()
            after = self._shown(path, number)
            self._log("update", path, number, before, after)
            self._hook("updated", path, after, before)

    def _stamp(self) -> str:
        self.at += timedelta(microseconds=1_000_003)
        return self.at.isoformat().replace("+00:00", "Z")

    def _shown(self, path: str, number: int) -> Object:
        row = copy.deepcopy(self.tables[path][number])
        for name, table in _NESTED.items():
            if row.get(name) is not None:
                found = self.tables[table][row[name]]
                brief = {"id", "name", "slug", "mac_address"}
                row[name] = {key: value for key, value in found.items() if key in brief}
        if path == "dcim/devices":
            row["status"] = {"value": "active", "label": "Active"}
            row["custom_fields"] = {name: row["custom_fields"].get(name) for name in self.custom}
        if path == "dcim/interfaces":
            row["type"] = {"value": row["type"], "label": row["type"]}
            listed = [o for o in self.tables["dcim/mac-addresses"].values() if o["assigned_object_id"] == number]
            row["mac_addresses"] = [{"id": o["id"], "mac_address": o["mac_address"]} for o in listed]
            row["mac_address"] = row["primary_mac_address"]["mac_address"] if row["primary_mac_address"] else None
        if path == "dcim/mac-addresses" and row["assigned_object_id"] in self.tables["dcim/interfaces"]:
            device = self.tables["dcim/interfaces"][row["assigned_object_id"]]["device"]
            row["assigned_object"] = {"id": row["assigned_object_id"], "device": {"id": device}}
        return row

    # -- what follows a change ------------------------------------------------------------------------------------

    def _log(self, action: str, path: str, number: int, before: Object | None, after: Object | None) -> None:
        self.changes.append(
            {
                "time": self.at.isoformat().replace("+00:00", "Z"),
                "user_name": "ann",
                "action": {"value": action, "label": action},
                "changed_object_type": f"dcim.{_MODEL.get(path, path.rpartition('/')[2].removesuffix('s'))}",
                "changed_object_id": number,
                "prechange_data": before,
                "postchange_data": after,
            }
        )

    def _logged(self, query: Mapping[str, list[str]]) -> list[Object]:
        names = ("changed_object_type", "changed_object_id")
        return [
            c for c in reversed(self.changes) if all(str(c[name]) in query.get(name, [str(c[name])]) for name in names)
        ]

    def _hook(self, event: str, path: str, shown: Object, before: Object | None = None) -> None:
        if path not in _MODEL or not self.webhooks:
            return
        told = {
            "event": event,
            "timestamp": self.at.isoformat(),
            "object_type": f"dcim.{_MODEL[path]}",
            "data": shown,
            "request": {"id": "00000000-0000-4000-8000-000000000000", "method": "PATCH", "user": "ann"},
            "snapshots": {"prechange": before, "postchange": shown},
        }
        body = json.dumps(told).encode()
        for send, secret in self.webhooks:
            signature = hmac.new(secret.encode(), body, hashlib.sha512).hexdigest()
            send(body, {"Content-Type": "application/json", "X-Hook-Signature": signature})


@contextmanager
def serve(stand: Stand) -> Iterator[str]:
    """On a port of its own; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.title(): value for name, value in self.headers.items()}
            status, told, data = stand.answer(self.command, url.path, parse_qs(url.query), headers, body)
            text = json.dumps(data).encode()
            self.send_response(status)
            for name, value in {**told, "Content-Type": "application/json", "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _do

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    with answering(Handler) as port:
        yield f"http://127.0.0.1:{port}"
