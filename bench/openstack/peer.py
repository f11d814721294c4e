"""Nova itself, behind JSON lines: reads a request a line from stdin, answers with a line on stdout.

Runs under the Python of the environment that Nova is installed in (:mod:`bench.openstack.adapter` makes it and starts
this file), so that nothing of Evenkeel imports Nova.  Must not import Evenkeel.  Every decision is made by Nova's own
functions: ``numa_get_constraints`` turns a flavor into a request, ``PciPassthroughFilter`` and ``NUMATopologyFilter``
choose hosts, its weighers order them, ``numa_fit_instance_to_host`` fits, and a claim is what the resource tracker
does: ``PciDeviceStats.consume_requests``, then ``numa_usage_from_instance_numa`` (nova/compute/resource_tracker.py).
What is left out is what costs more, not less: HTTP, the database, Placement.

Times are CPU seconds of this thread, around the calls of Nova alone (once a timer was armed, ``process_time`` counts in
ticks).
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import nova.conf
import sqlalchemy
from nova import exception, objects
from nova.db.main import models
from nova.objects import pci_device_pool
from nova.pci import stats as pci_stats
from nova.scheduler import weights
from nova.scheduler.filters import numa_topology_filter, pci_passthrough_filter
from nova.scheduler.host_manager import HostState
from nova.scheduler.weights import cpu, pci, ram
from nova.virt import hardware

CONF = nova.conf.CONF
#: Hosts that are tried before Nova gives a guest up: ``[scheduler]max_attempts``, its default.
ATTEMPTS = 3


class TimedOut(BaseException):
    """No ``except Exception`` of Nova may swallow it."""


def _time_is_up(*_: object) -> None:
    raise TimedOut


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Stop what runs inside after so many CPU seconds, by TimedOut."""
    signal.setitimer(signal.ITIMER_PROF, seconds or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Host:
    """What the scheduler knows of a compute node, and the devices that the node itself keeps."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.name = raw["name"]
        cells = [_host_cell(cell) for cell in raw["cells"]]
        topology = objects.NUMATopology(cells=cells)
        self.tracker = pci_stats.PciDeviceStats(topology)
        for device in raw.get("devices", ()):
            self._add(device)
        state = HostState(self.name, self.name, "cell")
        state.numa_topology = topology
        state.ram_allocation_ratio = state.cpu_allocation_ratio = 1.0
        state.vcpus_total = sum(len(cell.pcpuset | cell.cpuset) for cell in cells)
        state.vcpus_used = sum(len(cell.pinned_cpus) for cell in cells)
        state.total_usable_ram_mb = sum(cell.memory for cell in cells)
        state.free_ram_mb = sum(cell.avail_memory for cell in cells)
        self.state = state
        self.publish()

    def _add(self, raw: dict[str, Any]) -> None:
        """A device into the pool that Nova's own ``add_device`` would put it in (keys: PciDeviceStats.pool_keys)."""
        device = objects.PciDevice(
            address=raw["address"],
            vendor_id=raw["vendor"],
            product_id=raw["product"],
            dev_type=raw["type"],
            numa_node=raw["node"],
            parent_addr=raw.get("parent"),
            status="available",
            extra_info={},
        )
        keys = {
            "vendor_id": raw["vendor"],
            "product_id": raw["product"],
            "numa_node": raw["node"],
            "dev_type": raw["type"],
            "address": raw.get("parent") or raw["address"],
        }
        if raw.get("network"):
            keys["physical_network"] = raw["network"]
        if raw["type"] != "type-PCI":
            keys["remote_managed"] = "false"
        for pool in self.tracker.pools:
            if {key: value for key, value in pool.items() if key not in ("count", "devices")} == keys:
                pool["count"] += 1
                pool["devices"].append(device)
                return
        self.tracker.pools.append({**keys, "count": 1, "devices": [device]})

    def publish(self) -> None:
        """The scheduler sees counts, no devices: what the compute node writes to ``compute_nodes.pci_stats``."""
        pools = self.tracker.to_device_pools_obj()
        self.state.pci_stats = pci_stats.PciDeviceStats(self.state.numa_topology, stats=pools)
        self.state.allocation_candidates = [{"mappings": {}}]
        self.state.limits = {}

    def claim(self, guest: Guest, topology: Any) -> tuple[list[str], dict[str, str] | None]:
        """Take what a fit names, as the resource tracker does: the devices, and what Nova raised, None if nothing.

        A claim that raised takes nothing; the devices are then those that Nova had chosen by that time.
        """
        pools = [{**pool, "devices": list(pool["devices"])} for pool in self.tracker.pools]
        devices: list[str] = []
        try:
            if guest.pci.requests:
                chosen = self.tracker.consume_requests(guest.pci.requests, topology.cells)
                devices = [device.address for device in chosen]
            self.state.numa_topology = hardware.numa_usage_from_instance_numa(self.state.numa_topology, topology)
        except exception.NovaException as error:
            self.tracker.pools = pools
            return devices, {"error": type(error).__name__, "message": str(error)}
        self.tracker.numa_topology = self.state.numa_topology
        self.state.free_ram_mb -= guest.flavor.memory_mb
        self.state.vcpus_used += guest.flavor.vcpus
        self.publish()
        return devices, None


def _host_cell(raw: dict[str, Any]) -> Any:
    cell = objects.NUMACell(
        id=raw["id"],
        socket=raw.get("socket"),
        cpuset=set(raw["shared"]),
        pcpuset=set(raw["dedicated"]),
        memory=raw["memory_mib"],
        memory_usage=raw.get("memory_used_mib", 0),
        cpu_usage=0,
        pinned_cpus=set(raw.get("pinned", ())),
        siblings=[set(core) for core in raw["siblings"]],
        mempages=[
            objects.NUMAPagesTopology(
                size_kb=page["size_kib"], total=page["total"], used=page.get("used", 0), reserved=0
            )
            for page in raw["pages"]
        ],
    )
    cell.network_metadata = objects.NetworkMetadata(physnets=set(raw.get("physnets", ())), tunneled=False)
    return cell


class Guest:
    """A flavor, and the request that Nova makes of it."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.uuid = raw["uuid"]
        self.flavor = objects.Flavor(
            id=1,
            name=raw.get("flavor", "f"),
            flavorid=raw.get("flavor", "f"),
            memory_mb=raw["memory_mib"],
            vcpus=raw["vcpus"],
            root_gb=0,
            ephemeral_gb=0,
            swap=0,
            rxtx_factor=1.0,
            vcpu_weight=0,
            disabled=False,
            is_public=True,
            extra_specs=raw["extra_specs"],
        )
        self.image = objects.ImageMeta(properties=objects.ImageMetaProps())
        self.pci = objects.InstancePCIRequests(
            instance_uuid=self.uuid,
            requests=[
                objects.InstancePCIRequest(
                    count=one["count"],
                    spec=[one["spec"]],
                    alias_name=None,  # of a port, so without Placement
                    request_id=one["id"],
                    requester_id=None,
                    numa_policy=one["policy"],
                )
                for one in raw.get("pci", ())
            ],
        )
        self.network = objects.NetworkMetadata(physnets=set(raw.get("physnets", ())), tunneled=False)

    def asked(self) -> Any:
        """A fresh InstanceNUMATopology: a fit writes into the one that it is given."""
        return hardware.numa_get_constraints(self.flavor, self.image)

    def spec(self) -> Any:
        return objects.RequestSpec(
            flavor=self.flavor,
            image=self.image,
            numa_topology=self.asked(),
            pci_requests=self.pci,
            network_metadata=self.network,
            instance_uuid=self.uuid,
            num_instances=1,
        )

    def limits(self) -> Any:
        return objects.NUMATopologyLimits(
            cpu_allocation_ratio=1.0, ram_allocation_ratio=1.0, network_metadata=self.network
        )


class Peer:
    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.filters = (pci_passthrough_filter.PciPassthroughFilter(), numa_topology_filter.NUMATopologyFilter())
        self.weighers = (ram.RAMWeigher(), cpu.CPUWeigher(), pci.PCIWeigher())

    def hello(self) -> dict[str, Any]:
        return {"nova": version("nova"), "python": sys.version.split()[0]}

    def config(self, pack: bool) -> dict[str, Any]:
        """Spread, Nova's default, or pack: hosts and nodes that are used come first."""
        sign = -1.0 if pack else 1.0
        CONF.set_override("packing_host_numa_cells_allocation_strategy", pack, group="compute")
        CONF.set_override("ram_weight_multiplier", sign, group="filter_scheduler")
        CONF.set_override("cpu_weight_multiplier", sign, group="filter_scheduler")
        return {}

    def define(self, hosts: list[dict[str, Any]], keep: bool = False) -> dict[str, Any]:
        if not keep:
            self.hosts = {}
        self.hosts.update((raw["name"], Host(raw)) for raw in hosts)
        return {}

    def fit(self, host: str, guest: dict[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        """The fit of one host.  ``answer``: the object as Nova serialises it, None: does not fit."""
        wanted = Guest(guest)
        before = time.thread_time()
        try:
            with limited(limit_s):
                answer = self._fit(self.hosts[host], wanted)
        except TimedOut:
            return {"answer": None, "timed_out": True, "cpu_s": time.thread_time() - before}
        spent = time.thread_time() - before
        return {"answer": json.loads(answer._to_json()) if answer else None, "timed_out": False, "cpu_s": spent}

    def _fit(self, host: Host, guest: Guest) -> Any:
        """As nova.compute.claims.Claim._test_numa_topology calls it."""
        return hardware.numa_fit_instance_to_host(
            host.state.numa_topology,
            guest.asked(),
            provider_mapping=None,
            limits=guest.limits(),
            pci_requests=guest.pci.requests,
            pci_stats=host.tracker,
        )

    def place(self, host: str, guest: dict[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        """Fit and claim on one host.  ``claim``: None when it went through, else the exception and its words."""
        wanted = Guest(guest)
        before = time.thread_time()
        try:
            with limited(limit_s):
                answer = self._fit(self.hosts[host], wanted)
        except TimedOut:
            return {
                "answer": None,
                "timed_out": True,
                "cpu_s": time.thread_time() - before,
                "claim": None,
                "devices": [],
            }
        text = json.loads(answer._to_json()) if answer else None
        devices, claim = self.hosts[host].claim(wanted, answer) if answer else ([], None)
        spent = time.thread_time() - before
        return {"answer": text, "timed_out": False, "cpu_s": spent, "claim": claim, "devices": devices}

    def filter(self, guest: dict[str, Any], hosts: list[str] | None = None) -> dict[str, Any]:
        """The hosts that both filters pass, in order, and what that took."""
        wanted = Guest(guest)
        names = hosts if hosts is not None else list(self.hosts)
        for name in names:
            self.hosts[name].state.allocation_candidates = [{"mappings": {}}]
        spec = wanted.spec()
        before = time.thread_time()
        passed = [host.name for host in self._passing([self.hosts[name] for name in names], spec)]
        return {"hosts": passed, "cpu_s": time.thread_time() - before}

    def _passing(self, hosts: list[Host], spec: Any) -> list[Host]:
        for one in self.filters:
            hosts = [host for host in hosts if one.host_passes(host.state, spec)]
        return hosts

    def schedule(self, guest: dict[str, Any]) -> dict[str, Any]:
        """Filter, weigh, fit and claim; the next host when a claim fails, as often as Nova does."""
        wanted = Guest(guest)
        for host in self.hosts.values():
            host.state.allocation_candidates = [{"mappings": {}}]
        before = time.thread_time()
        spec = wanted.spec()
        passing = self._passing(list(self.hosts.values()), spec)
        ordered = weights.HostWeightHandler().get_weighed_objects(
            list(self.weighers), [host.state for host in passing], spec
        )
        failures = []
        for weighed in ordered[:ATTEMPTS]:
            host = self.hosts[weighed.obj.host]
            answer = self._fit(host, wanted)
            if not answer:
                failures.append({"host": host.name, "error": "the compute node finds no fit"})
                continue
            text = answer._to_json()
            devices, error = host.claim(wanted, answer)
            if error:
                failures.append({"host": host.name, **error, "answer": json.loads(text)})
                continue
            spent = time.thread_time() - before
            return {
                "host": host.name,
                "answer": json.loads(text),
                "devices": devices,
                "failures": failures,
                "cpu_s": spent,
            }
        return {"host": None, "failures": failures, "cpu_s": time.thread_time() - before}

    def asked(self, guest: dict[str, Any]) -> dict[str, Any]:
        """The request as Nova stores it before it is placed, and the PCI requests and flavor beside it."""
        wanted = Guest(guest)
        flavor = {"cur": wanted.flavor.obj_to_primitive(), "old": None, "new": None}
        topology = wanted.asked()
        return {
            "topology": json.loads(topology._to_json()) if topology else None,
            "pci_requests": json.loads(wanted.pci.to_json()),
            "flavor": flavor,
        }

    def topology(self, host: str) -> dict[str, Any]:
        """The host as stored in ``compute_nodes.numa_topology``, and its free devices as in ``pci_stats``."""
        known = self.hosts[host]
        pools = pci_device_pool.from_pci_stats(list(known.tracker))
        return {
            "topology": json.loads(known.state.numa_topology._to_json()),
            "pci_stats": pools.obj_to_primitive(),
        }

    def store(self, url: str, tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Write rows into a fresh database with the tables of Nova's own models."""
        engine = sqlalchemy.create_engine(url)
        metadata = models.BASE.metadata
        metadata.create_all(engine, tables=[metadata.tables[name] for name in tables])
        with engine.begin() as connection:
            for name, rows in tables.items():
                for row in rows:
                    connection.execute(metadata.tables[name].insert(), {"deleted": 0, **row})
        engine.dispose()
        return {}


def main() -> None:
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, _time_is_up)
    objects.register_all()
    CONF([], project="nova", version="", default_config_files=[])
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(peer, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001  told to the other side, which raises
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
