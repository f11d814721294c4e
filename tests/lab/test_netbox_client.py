"""The client against NetBox's contract: always the stand-in, and a real NetBox when one is configured.

EVENKEEL_NETBOX_URL and EVENKEEL_NETBOX_TOKEN name a NetBox that may be written to; without them its half is skipped.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab.actor import NotFound
from evenkeel.lab.netbox import client as client_module
from evenkeel.lab.netbox.client import Changed, NetBox, Object, Refused
from tests.lab.netbox_stand_in import V1, V2, Stand, serve

REAL = os.environ.get("EVENKEEL_NETBOX_URL"), os.environ.get("EVENKEEL_NETBOX_TOKEN")
NO_REAL = "no NetBox: set EVENKEEL_NETBOX_URL and EVENKEEL_NETBOX_TOKEN to one that may be written to"


@contextmanager
def _real() -> Iterator[tuple[NetBox, int]]:
    """A device of a name that nobody has, with what it needs; all of it is removed afterwards."""
    url, token = REAL
    assert url and token
    tag = f"evenkeel-{uuid.uuid4().hex[:8]}"
    with NetBox(url, token) as box:
        made: list[tuple[str, int]] = []

        def create(path: str, **body: object) -> int:
            made.append((path, int(box.create(path, body)["id"])))
            return made[-1][1]

        try:
            site = create("dcim/sites", name=tag, slug=tag, status="active")
            maker = create("dcim/manufacturers", name=tag, slug=tag)
            kind = create("dcim/device-types", manufacturer=maker, model=tag, slug=tag)
            role = create("dcim/device-roles", name=tag, slug=tag)
            device = create("dcim/devices", name=tag, device_type=kind, role=role, site=site, serial="OLD")
            for number in range(3):
                create("dcim/interfaces", device=device, name=f"eth{number}", type="other")
            yield box, device
        finally:
            for path, number in reversed(made):
                box._ask("DELETE", f"{path}/{number}/")


@contextmanager
def _stand_in() -> Iterator[tuple[NetBox, int]]:
    stand = Stand()
    site = stand.add("dcim/sites", name="Nuremberg", slug="nbg")
    device = stand.device("host1", site=site, serial="OLD")
    for number in range(3):
        stand.add("dcim/interfaces", device=device, name=f"eth{number}")
    with serve(stand) as url, NetBox(url, V2) as box:
        yield box, device


@pytest.fixture(
    params=[
        pytest.param(_stand_in, id="stand-in"),
        pytest.param(_real, id="real", marks=pytest.mark.skipif(not all(REAL), reason=NO_REAL)),
    ]
)
def there(request: pytest.FixtureRequest) -> Iterator[tuple[NetBox, int]]:
    with request.param() as found:
        yield found


def _device(box: NetBox, number: int) -> tuple[Object, str]:
    found = box.device(number)
    assert found
    return found


def test_it_tells_its_version(there: tuple[NetBox, int]) -> None:
    assert there[0].version() >= client_module.SAFE
    there[0].writable()


def test_a_list_is_read_to_its_end_over_pages(there: tuple[NetBox, int], monkeypatch: pytest.MonkeyPatch) -> None:
    box, device = there
    monkeypatch.setattr(client_module, "PAGE", 2)
    assert [one["name"] for one in box.interfaces(device)] == ["eth0", "eth1", "eth2"]
    assert device in [one["id"] for one in box.devices()]


def test_devices_come_without_their_rendered_context(there: tuple[NetBox, int]) -> None:
    box, device = there
    assert "config_context" not in next(one for one in box.devices() if one["id"] == device)


def test_a_device_has_an_etag_that_changes_with_it(there: tuple[NetBox, int]) -> None:
    box, device = there
    _, before = _device(box, device)
    changed, after = box.patch("dcim/devices", device, {"serial": "NEW"}, before)
    assert changed["serial"] == "NEW"
    assert before and after and before != after
    assert _device(box, device)[1] == after


def test_a_stale_etag_changes_nothing(there: tuple[NetBox, int]) -> None:
    box, device = there
    _, stale = _device(box, device)
    box.patch("dcim/devices", device, {"serial": "THEIRS"}, stale)
    with pytest.raises(Changed, match="meanwhile"):
        box.patch("dcim/devices", device, {"serial": "OURS"}, stale)
    assert _device(box, device)[0]["serial"] == "THEIRS"


def test_one_field_is_patched_and_no_other(there: tuple[NetBox, int]) -> None:
    box, device = there
    before, etag = _device(box, device)
    box.patch("dcim/devices", device, {"serial": "NEW"}, etag)
    after, _ = _device(box, device)
    assert {name for name in before if before[name] != after[name]} == {"serial", "last_updated"}


def test_what_changed_since_is_asked_for_by_time(there: tuple[NetBox, int]) -> None:
    box, device = there
    found, etag = _device(box, device)
    box.patch("dcim/devices", device, {"serial": "NEW"}, etag)
    since = _device(box, device)[0]["last_updated"]
    assert since > found["last_updated"]
    assert device in [one["id"] for one in box.devices(last_updated__gte=since)]
    assert list(box.devices(last_updated__gte="2199-01-01T00:00:00Z")) == []


def test_netbox_logs_who_changed_what(there: tuple[NetBox, int]) -> None:
    box, device = there
    box.patch("dcim/devices", device, {"serial": "NEW"}, _device(box, device)[1])
    newest = box.changes(device)[0]
    assert newest["action"]["value"] == "update" and newest["user_name"]
    assert (newest["prechange_data"]["serial"], newest["postchange_data"]["serial"]) == ("OLD", "NEW")


def test_a_mac_address_is_an_object_and_becomes_primary(there: tuple[NetBox, int]) -> None:
    box, device = there
    interface = box.interfaces(device)[0]
    assert interface["mac_address"] is None and interface["mac_addresses"] == []
    body = {"mac_address": "02:00:00:00:00:01", "assigned_object_type": "dcim.interface"}
    made = box.create("dcim/mac-addresses", body | {"assigned_object_id": interface["id"]})
    found = box.one("dcim/interfaces", interface["id"])
    assert found and found[1]
    box.patch("dcim/interfaces", interface["id"], {"primary_mac_address": made["id"]}, found[1])
    assert box.interfaces(device)[0]["mac_address"] == "02:00:00:00:00:01"


def test_what_is_not_there_is_none_and_what_it_refuses_says_why(there: tuple[NetBox, int]) -> None:
    box, device = there
    assert box.device(2_000_000_000) is None
    with pytest.raises(NotFound):
        box.patch("dcim/devices", 2_000_000_000, {"serial": "x"}, "")
    with pytest.raises(Refused, match="no_such_field"):
        box.patch("dcim/devices", device, {"custom_fields": {"no_such_field": 1}}, "")
    with pytest.raises(Refused):
        box.create("dcim/interfaces", {"device": {"name": "no such device at all"}, "name": "x", "type": "other"})


# -- what only the stand-in can be made to do ---------------------------------------------------------------------


@pytest.mark.parametrize("token", [V1, V2])
def test_both_kinds_of_token_are_sent_as_netbox_wants_them(token: str) -> None:
    with NetBox("http://netbox", token, transport=Stand().transport()) as box:
        assert box.version() == (4, 6, 8)


@pytest.mark.parametrize("token", [V1[:-1] + "0", V2[:-1] + "0"])
def test_a_wrong_token_is_told_apart_from_no_answer(token: str) -> None:
    with NetBox("http://netbox", token, transport=Stand().transport()) as box, pytest.raises(Refused, match="Invalid"):
        box.version()


def test_an_old_netbox_is_not_written_to_unless_forced() -> None:
    with NetBox("http://netbox", V1, transport=Stand("4.5.9").transport()) as box:
        with pytest.raises(Refused, match=r"4\.5\.9 cannot say"):
            box.writable()
        box.writable(force=True)


def test_a_netbox_that_does_not_answer_is_unreachable() -> None:
    with NetBox("http://127.0.0.1:1", V1) as box, pytest.raises(Unreachable, match="does not answer"):
        box.version()


def test_an_address_without_a_scheme_is_wrong_input() -> None:
    with pytest.raises(WrongInput, match="no address"):
        NetBox("netbox.example.org", V1)
