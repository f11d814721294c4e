"""A real virtual host of the pool is installed anew before it is offered, and one that lost memory is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.virtual.conftest import on_host, running_host

from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.lab import claims, machines
from evenkeel.lab.actor import with_roles
from evenkeel.lab.claims import Claim, Request
from evenkeel.lab.keeper import Keeper
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Registration
from evenkeel.lab.store import Store, create, sqlite_url
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.spec import BUILT_IN

pytestmark = [pytest.mark.virtual, pytest.mark.long]
ROOT = with_roles("root", ["admin"])


def test_a_virtual_host_is_installed_anew_before_it_is_offered(tmp_path: Path) -> None:
    with (
        running_host("prepare", BUILT_IN["tiny"]) as host,
        Store(sqlite_url(tmp_path / "lab.db")) as store,
    ):
        create(store)
        lab = Lab(tmp_path, store)
        with host.probe() as probe:
            first_boot = probe.call("hello")["boot_id"]
            facts = Facts.model_validate(probe.call("facts"))
            inventory = Inventory.model_validate(probe.call("inventory"))
        assert inventory.serials["system"] == host.name and inventory.uuid and inventory.cpu_flags
        wanted = Registration(name="host1", facts=facts, inventory=inventory, address=host.address)
        known = machines.register(lab, ROOT, wanted).machine
        on_host(host, "echo mine >/root/left-behind; sync")
        host.close()

        got = reserve_and_prepare(lab)
        assert got.state == "active", machines.get(lab, ROOT, "host1").state_reason
        on_host(host, "test ! -e /root/left-behind")
        with host.probe() as probe:
            assert probe.call("hello")["boot_id"] != first_boot
        again = machines.get(lab, ROOT, "host1")
        assert (again.identity, again.state) == (known.identity, "claimed")
        host.close()

        # A memory module is taken out while nobody looks.
        claims.release(lab, ROOT, got.id)
        lifecycle.power_cut(host.name)
        file = lifecycle.folder_of(host.name) / "host.json"
        asked = lifecycle.read_host(host.name)
        node = asked.spec.nodes[0].model_copy(update={"memory": asked.spec.memory * 3 // 4})
        spec = asked.spec.model_copy(update={"nodes": (node,)})
        file.write_text(asked.model_copy(update={"spec": spec}).model_dump_json())
        waits = reserve_and_prepare(lab)
        found = machines.get(lab, ROOT, "host1")
        assert (waits.state, found.state) == ("waiting", "suspect")
        assert "mem was " in found.state_reason
        assert waits.waits and "host1 is suspect" in waits.waits.why[0]


def reserve_and_prepare(lab: Lab) -> Claim:
    """As the keeper's thread does it, in this one."""
    made = claims.request(lab, ROOT, Request(predicate="virtual:yes", reason="test", length_ns=3600 * 10**9))
    assert made.state == "preparing"
    with lab.store.read() as connection:
        (row,) = claims.preparing(connection)
    Keeper(lab).prepare(row)
    return claims.get(lab, ROOT, made.id)
