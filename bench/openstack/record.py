"""Record what Nova answers and stores, for tests that need no Nova: ``python -m bench.openstack.record FOLDER``.

Asks Nova the :mod:`cases <bench.openstack.cases>`, and lets it fill two clouds: a healthy one by its own scheduler, and
one with the answers to R1, R2 and R3.  Both are written by Nova's own database models into a real MariaDB, which is
started here on a socket in a temporary folder, and read back by the two commands of docs/how-to/lint-nova.md.
Needs Debian's mariadb-server.  Writes cases.json, and healthy and broken as .jsonl and .sql.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.openstack.adapter import MIB, Nova, guest_to_nova, host_to_nova, identity
from bench.openstack.cases import BIG, GIB, HUGE, Case, cases, function, guest, host, node

from evenkeel.documents.fleet import CellRequest, FleetHost, FunctionRequest, Request
from evenkeel.verify.nova.dump import TABLES, query

Row = dict[str, Any]


def ask(nova: Nova, case: Case) -> dict[str, Any]:
    """A case and what Nova said to it, as plain data."""
    nova.style = case.style
    nova.define([case.host])
    before = [nova.place(case.host.name, one) for one in case.before]
    reply = nova.place(case.host.name, case.guest, limit_s=20)
    books = nova.ask("topology", host=case.host.name)
    for one in (*before, reply):
        del one["cpu_s"]
    return {
        "id": case.id,
        "what": case.what,
        "nova": nova.version,
        "host": case.host.model_dump(mode="json"),
        "before": [
            {"guest": one.model_dump(mode="json"), **said} for one, said in zip(case.before, before, strict=True)
        ],
        "guest": case.guest.model_dump(mode="json"),
        "seat": case.seat.model_dump(mode="json") if case.seat else None,
        **reply,
        "books": books,
    }


class Cloud:
    """Rows of a cell database, as Nova would have them."""

    def __init__(self, nova: Nova) -> None:
        self.nova = nova
        self.rows: dict[str, list[Row]] = {table: [] for table in ("compute_nodes", "instances", *TABLES)}

    def add_guest(self, request: dict[str, Any], where: str, reply: dict[str, Any]) -> None:
        asked = self.nova.ask("asked", guest=request)
        instance = {"uuid": request["uuid"], "host": where, "node": where, "vm_state": "active", "display_name": "g"}
        self.rows["instances"].append(instance)
        self.rows["instance_extra"].append(
            {
                "instance_uuid": request["uuid"],
                "numa_topology": json.dumps(reply["answer"]) if reply.get("answer") else None,
                "pci_requests": json.dumps(asked["pci_requests"]),
                "flavor": json.dumps(asked["flavor"]),
            }
        )
        ids = [wish["id"] for wish in request["pci"] for _ in range(wish["count"])]
        for address, wish in zip(reply.get("devices", ()), ids, strict=False):
            row = next(one for one in self.rows["pci_devices"] if (one["host"], one["address"]) == (where, address))
            row.update(instance_uuid=request["uuid"], request_id=wish, status="allocated")

    def add_devices(self, known: FleetHost, number: int) -> None:
        for one in host_to_nova(known)["devices"]:
            self.rows["pci_devices"].append(
                {
                    "host": known.name,
                    "compute_node_id": number,
                    "address": one["address"],
                    "vendor_id": one["vendor"],
                    "product_id": one["product"],
                    "dev_type": one["type"],
                    "dev_id": "pci_" + one["address"].replace(":", "_").replace(".", "_"),
                    "label": f"label_{one['vendor']}_{one['product']}",
                    "status": "available",
                    "numa_node": one["node"],
                    "parent_addr": one["parent"],
                    "extra_info": "{}",
                }
            )

    def add_host(self, known: FleetHost, number: int) -> None:
        books = self.nova.ask("topology", host=known.name)
        self.rows["compute_nodes"].append(
            {
                "id": number,
                "host": known.name,
                "hypervisor_hostname": known.name,
                "uuid": identity(f"host/{known.name}"),
                **{f"{what}{used}": 0 for what in ("vcpus", "memory_mb", "local_gb") for used in ("", "_used")},
                "hypervisor_type": "QEMU",
                "hypervisor_version": 8002000,
                "cpu_info": '{"model": "it\'s \\"quoted\\""}',
                "numa_topology": json.dumps(books["topology"]),
                "pci_stats": json.dumps(books["pci_stats"]),
            }
        )

    def tables(self) -> dict[str, list[Row]]:
        """In an order that keeps references whole."""
        devices = [{key: value for key, value in row.items() if key != "host"} for row in self.rows["pci_devices"]]
        order = ("compute_nodes", "instances", "instance_extra")
        return {**{table: self.rows[table] for table in order}, "pci_devices": devices}


def broken(nova: Nova) -> Cloud:
    """Hosts with the answers to R1, R2 and R3.  A claim that raised has left its guest stored all the same."""
    cloud = Cloud(nova)
    for number, case in enumerate(
        (one for one in cases() if one.id in ("R1", "R1-pages", "R2", "R2-isolate", "R3")), start=1
    ):
        nova.define([case.host])
        cloud.add_devices(case.host, number)
        for one in (*case.before, case.guest, *case.after):
            cloud.add_guest(guest_to_nova(one), case.host.name, nova.place(case.host.name, one))
        cloud.add_host(case.host, number)
    return cloud


def healthy(nova: Nova) -> Cloud:
    """Three hosts that the scheduler fills with guests of each kind that Nova has."""
    hosts = [
        host(
            f"cmp-{number}",
            (node(0, pages={BIG: 32 * GIB, HUGE: 16 * GIB}), node(1, pages={BIG: 32 * GIB, HUGE: 16 * GIB})),
            (function(1, 0, "nic", "a"), function(2, 1, "nic", "a"), function(3, 0, "gpu"), function(4, 0, "nic", "b")),
        )
        for number in range(3)
    ]
    nova.define(hosts)
    cloud = Cloud(nova)
    for number, one in enumerate(hosts, start=1):
        cloud.add_devices(one, number)
    small = (CellRequest(vcpus=2, memory_bytes=6 * HUGE * 100),)
    kinds = (
        {"threads": "isolate"},
        {"threads": "require"},
        {"threads": "prefer", "pages": "huge-largest"},
        {"threads": "isolate", "emulator": "own"},
        {"cells": small, "pages": HUGE},
        {"cells": small, "pages": "ordinary"},
        {"functions": (FunctionRequest(network="a"),)},
        {"functions": (FunctionRequest(pool="gpu", near="preferred"),)},
    )
    requests: list[Request] = []
    for number in range(16):
        vcpus = (3, 2) if number % 8 == 2 else (2,)
        requests.append(guest(identity(f"healthy/{number}"), *vcpus, **kinds[number % len(kinds)]))
    for request in requests:
        reply = nova.schedule(request)
        if reply["host"] is None:
            raise RuntimeError(f"Nova has no place for {request.name}")
        cloud.add_guest(guest_to_nova(request), reply["host"], reply)
    for number, specs in enumerate(
        (
            {"hw:numa_nodes": "1"},
            {"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "^0", "hw:mem_page_size": "1GB"},
            {"hw:numa_nodes": "2", "hw:mem_page_size": "2MB"},
        )
    ):
        raw = {
            "uuid": identity(f"healthy/raw/{number}"),
            "vcpus": 4,
            "memory_mib": 2 * GIB // MIB,
            "extra_specs": specs,
            "pci": [],
        }
        cloud.add_guest(raw, "cmp-1", nova.ask("place", host="cmp-1", guest=raw))
    plain = {"uuid": identity("healthy/plain"), "vcpus": 1, "memory_mib": 512, "extra_specs": {}, "pci": []}
    cloud.add_guest(plain, "cmp-2", {})
    for number, known in enumerate(hosts, start=1):
        cloud.add_host(known, number)
    return cloud


@contextmanager
def mariadb() -> Iterator[Path]:
    """A server of its own; gives the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="evenkeel-nova-") as folder:
        data, socket = Path(folder, "data"), Path(folder, "socket")
        who = ["--user=root", f"--datadir={data}"]
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", *who, "--skip-test-db", "--auth-root-authentication-method=normal"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        server = subprocess.Popen(
            ["mariadbd", "--no-defaults", *who, f"--socket={socket}", "--skip-networking", f"--pid-file={folder}/pid"],
            stderr=subprocess.DEVNULL,
        )
        try:
            while subprocess.run(["mariadb-admin", f"--socket={socket}", "ping"], capture_output=True).returncode:
                if server.poll() is not None:
                    raise RuntimeError("mariadbd ended")
                time.sleep(0.2)
            yield socket
        finally:
            server.terminate()
            server.wait(timeout=60)


def dump(nova: Nova, cloud: Cloud, name: str, socket: Path, folder: Path) -> None:
    client = ["mysql", f"--socket={socket}"]
    subprocess.run([*client, "-e", f"CREATE DATABASE {name} CHARACTER SET utf8mb3"], check=True)
    nova.ask("store", url=f"mysql+pymysql://root@/{name}?unix_socket={socket}", tables=cloud.tables())
    lines = subprocess.run(
        [*client, "--batch", "--raw", "--skip-column-names", name],
        input=query(),
        check=True,
        capture_output=True,
        text=True,
    )
    (folder / f"{name}.jsonl").write_text(lines.stdout, encoding="utf-8")
    backup = subprocess.run(
        ["mysqldump", f"--socket={socket}", "--single-transaction", name, *TABLES],
        check=True,
        capture_output=True,
        text=True,
    )
    (folder / f"{name}.sql").write_text(backup.stdout, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with mariadb() as socket, Nova() as nova:
        found = [ask(nova, case) for case in cases()]
        (folder / "cases.json").write_text(json.dumps(found, sort_keys=True) + "\n", encoding="utf-8")
        nova.style = "legacy"
        dump(nova, healthy(nova), "healthy", socket, folder)
        dump(nova, broken(nova), "broken", socket, folder)
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", file=sys.stderr)


if __name__ == "__main__":
    main()
