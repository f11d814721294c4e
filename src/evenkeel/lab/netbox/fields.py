"""The fields that the lab and NetBox both know: who owns each, where it is there, where it is here.

Pure: reads objects and rows that somebody else fetched.  The table can be changed in ``netbox.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evenkeel.lab.netbox.compare import Owner, Value, plain

CUSTOM = "custom_fields."


@dataclass(frozen=True)
class Field:
    """``netbox``: path in the device as REST gives it.  ``column``: of table machine; empty: only the facts know it.

    ``writable``: whether a PATCH of the device can set it."""

    name: str
    owner: Owner
    netbox: str
    column: str = ""
    required: bool = False
    writable: bool = True
    what: str = ""


TABLE: tuple[Field, ...] = (
    Field("name", Owner.NETBOX, "name", "name", required=True, what="name of the machine"),
    Field("site", Owner.NETBOX, "site.slug", "site", what="where it stands"),
    Field(
        "enclosure",
        Owner.NETBOX,
        "parent_device.id",
        "enclosure_id",
        writable=False,
        what="device whose bay it is in, by its NetBox id",
    ),
    Field("owner", Owner.LOCAL, CUSTOM + "lab_owner", "owner", what="principal that owns it"),
    Field("team", Owner.LOCAL, CUSTOM + "lab_team", "team", what="team that owns it"),
    Field("serial", Owner.OBSERVED, "serial", what="serial number that the firmware tells"),
    Field("platform", Owner.OBSERVED, "platform.name", what="operating system that was found on it"),
    Field("memory_gib", Owner.OBSERVED, CUSTOM + "memory_gib", what="memory in GiB, rounded"),
    Field("cpu_model", Owner.OBSERVED, CUSTOM + "cpu_model", what="model of the processors"),
    Field("cpu_sockets", Owner.OBSERVED, CUSTOM + "cpu_sockets", what="processors"),
    Field("cpu_threads", Owner.OBSERVED, CUSTOM + "cpu_threads", what="logical CPUs"),
)
#: ``interface.NAME.mac``: not in the table, there is one for each network interface on PCI.
_MAC = re.compile(r"interface\.(.+)\.mac")


def table(owners: Mapping[str, Owner], paths: Mapping[str, str]) -> tuple[Field, ...]:
    """The fields with what ``netbox.yaml`` says of them."""
    return tuple(replace(f, owner=owners.get(f.name, f.owner), netbox=paths.get(f.name, f.netbox)) for f in TABLE)


def mac_field(interface: str) -> str:
    return f"interface.{interface}.mac"


def interface_of(field: str) -> str | None:
    """``"interface.eth0.mac"`` -> ``"eth0"``; None: another field."""
    match = _MAC.fullmatch(field)
    return match[1] if match else None


# -- NetBox's side ------------------------------------------------------------------------------------------------


def in_device(device: Mapping[str, Any], field: Field) -> Value:
    """Its value in a device, as REST gives it; a choice is its value, an object on the way may be null."""
    found: Any = device
    if field.name == "name":
        return plain(name_of(str(device.get("name") or "")))
    for part in field.netbox.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return plain(found.get("value") if isinstance(found, Mapping) else found)


def name_of(text: str) -> str:
    """As the lab spells names: lower case, and of its signs only those of a host name."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")[:63].rstrip("-.")


def missing(device: Mapping[str, Any], field: Field) -> str:
    """Why this NetBox cannot hold the field; empty when it can.  It lists every custom field, set or not."""
    if field.netbox.startswith(CUSTOM):
        name = field.netbox.removeprefix(CUSTOM)
        if name not in (device.get("custom_fields") or {}):
            return f"NetBox has no custom field {name} for devices"
    return ""


def body_of(field: Field, value: Value) -> dict[str, Any]:
    """What a PATCH sends to set this field and no other: NetBox merges custom fields with those that it has."""
    head, _, rest = field.netbox.partition(".")
    if head == "custom_fields":
        return {head: {rest: value}}
    if rest:
        return {head: {rest: value} if value is not None else None}
    return {head: "" if value is None else value}


def mac_of(interface: Mapping[str, Any]) -> Value:
    return plain(mac(str(interface.get("mac_address") or "")))


def mac(text: str) -> str:
    """As NetBox writes them: upper case with colons."""
    digits = re.sub(r"[^0-9A-Fa-f]", "", text).upper()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


# -- the lab's side -----------------------------------------------------------------------------------------------


def observed(facts: Mapping[str, Any], inventory: Mapping[str, Any]) -> dict[str, Value]:
    """What the last documents of the probe (as plain data) say, by names of fields."""
    cpus = [cpu for cpu in facts.get("cpus", ()) if cpu.get("online", True)]
    models = {str(cpu["model"]) for cpu in cpus if cpu.get("model")}
    found: dict[str, Value] = {
        "serial": plain(inventory.get("serials", {}).get("system")),
        "platform": plain(facts.get("identity", {}).get("os_release")),
        "memory_gib": round(int(facts.get("memory_bytes") or 0) / (1 << 30)) or None,
        "cpu_model": plain(" / ".join(sorted(models))),
        "cpu_sockets": len({cpu["package"] for cpu in cpus if cpu.get("package") is not None}) or None,
        "cpu_threads": len(cpus) or None,
    }
    for nic in facts.get("nics", ()):
        if nic.get("pci") and nic.get("mac"):
            found[mac_field(str(nic["name"]))] = mac(str(nic["mac"]))
    return found
