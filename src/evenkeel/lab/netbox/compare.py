"""The three-way compare of one field: last agreed value (base), NetBox's, the lab's; and who owns it.  Pure.

Decides what a sync does with the lab's value and what a push does with NetBox's, and names every conflict.  It never
says to overwrite a value that its owner changed, unless the user named that field.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: None: empty.  A list is one of words whose order means nothing (MAC addresses), sorted.
Value = str | int | list[str] | None


class Owner(StrEnum):
    """Who is right when both know something: NetBox, the lab's people, or what the probe saw on the machine."""

    NETBOX = "netbox"
    LOCAL = "local"
    OBSERVED = "observed"


class Act(StrEnum):
    SAME = "same"  # both say it; from now on that is what was agreed upon
    TAKE = "take"  # sync: the lab's value becomes NetBox's
    WRITE = "write"  # push: NetBox's value becomes the lab's
    HOLD = "hold"  # they differ, and both stay as they are


@dataclass(frozen=True)
class Base:
    """What was last agreed upon.  No Base at all: never."""

    value: Value


@dataclass(frozen=True)
class Outcome:
    """``conflict``: empty, or what contradicts what.  ``why``: for people."""

    act: Act
    why: str
    conflict: str = ""


def plain(value: object) -> Value:
    """One form for each value: empty text and empty lists are None, lists are sorted and have no doubles."""
    if value is None or value == "" or value == [] or value == ():
        return None
    if isinstance(value, list | tuple | set | frozenset):
        return sorted({str(item) for item in value})
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return str(value)


def into_lab(owner: Owner, base: Base | None, netbox: Value, lab: Value, *, required: bool = False) -> Outcome:
    """What a sync does.  ``required``: the lab cannot do without a value."""
    if netbox == lab:
        return Outcome(Act.SAME, "both say so")
    if required and netbox is None:
        return Outcome(Act.HOLD, "NetBox has none, and the lab needs one")
    if base is None:
        return _first(owner, netbox, lab)
    theirs, ours = netbox != base.value, lab != base.value
    if owner is Owner.NETBOX:
        if theirs and ours:
            return Outcome(Act.TAKE, "NetBox owns it", "changed in NetBox and in the lab since they agreed")
        if theirs:
            return Outcome(Act.TAKE, "changed in NetBox, which owns it")
        return Outcome(Act.HOLD, "changed in the lab; stays until NetBox changes it")
    who = "the lab owns it" if owner is Owner.LOCAL else "the machine itself says so"
    if theirs and ours:
        return Outcome(Act.HOLD, who, "changed in NetBox and in the lab since they agreed")
    if theirs:
        return Outcome(Act.HOLD, who, "changed in NetBox")
    return Outcome(Act.HOLD, f"{who}; a push writes it to NetBox")


def _first(owner: Owner, netbox: Value, lab: Value) -> Outcome:
    if lab is None:
        return Outcome(Act.TAKE, "the lab knew nothing")
    if netbox is None:
        return Outcome(Act.HOLD, "NetBox knows nothing; a push writes it there")
    if owner is Owner.NETBOX:
        return Outcome(Act.TAKE, "NetBox owns it", "they never agreed")
    return Outcome(Act.HOLD, "the lab is right about it", "they never agreed")


def into_netbox(owner: Owner, base: Base | None, netbox: Value, lab: Value, *, named: bool = False) -> Outcome:
    """What a push does.  ``named``: the user asked for this field by its name, conflict or not.

    Nothing is ever written over something: an empty value of the lab means that it does not know."""
    if netbox == lab:
        return Outcome(Act.SAME, "both say so")
    if lab is None:
        return Outcome(Act.HOLD, "the lab knows nothing")
    if owner is Owner.NETBOX and not named:
        return Outcome(Act.HOLD, "NetBox owns it; name the field to write it all the same")
    if base is None and netbox is None:
        return Outcome(Act.WRITE, "NetBox knew nothing")
    if base is not None and netbox == base.value:
        return Outcome(Act.WRITE, "NetBox still has what was agreed")
    conflict = "they never agreed" if base is None else "changed in NetBox since they agreed"
    if named:
        return Outcome(Act.WRITE, "named by you", conflict)
    return Outcome(Act.HOLD, "NetBox has something else; name the field to overwrite it", conflict)
