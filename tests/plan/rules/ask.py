"""Plans of one host, and what rules say in them.  No tests here."""

from __future__ import annotations

from typing import Any

from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import HostPlan, Setting
from evenkeel.documents.site import GuestWish
from evenkeel.plan import make_plan
from tests.plan.factories import make_facts, make_site


def plan(facts: Facts | None = None, guests: dict[str, GuestWish] | None = None, **host: Any) -> HostPlan:
    return make_plan(make_site(guests, **host), {"cell": facts or make_facts()}).hosts[0]


def one(host: HostPlan, identifier: str) -> Setting:
    setting = host.setting(identifier)
    assert setting is not None, f"{identifier} is not among {[s.id for s in host.settings]}"
    return setting


def of(host: HostPlan, rule: str) -> list[Setting]:
    return [setting for setting in host.settings if setting.rule == rule]


def notes_of(host: HostPlan, rule: str) -> list[str]:
    return [note.text for note in host.notes if note.rule == rule]


def metal(facts: Facts | None = None, **update: Any) -> Facts:
    """The same machine as it would be without a hypervisor below it.  ``update`` replaces whole parts."""
    facts = facts or make_facts()
    identity = facts.identity.model_copy(update={"hypervisor": "none", "emulated": False})
    return facts.model_copy(update={"identity": identity, **update})
