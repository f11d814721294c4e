"""What a virtual host looks like: the topology file and its built-in defaults.  Pure: no QEMU, no I/O but one read.

The file is described in docs/reference/virtual-host.md.  Every check that QEMU would answer with a riddle is made
here, where it can be answered with the line of the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, model_validator

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Bytes
from evenkeel.documents.yamltext import read_model
from evenkeel.errors import Where, WrongInput
from evenkeel.machines.paths import kind_of

MIB = 1024**2
#: A name becomes a folder, a host name and a DMI serial number.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")

#: Systemd, libvirtd and a small guest with its huge pages; below this the host swaps nothing and dies slowly.
SMALLEST_HOST = 1024 * MIB
MAX_CPUS = 64
MAX_DEVICES = 24


def _format_size(size: int) -> str | int:
    return f"{size // MIB}MiB" if size % MIB == 0 else size


#: Bytes inside, ``1536MiB`` or ``2GiB`` in the file and when it is kept.
Size = Annotated[Bytes, PlainSerializer(_format_size), Field(ge=0)]


class Node(Model):
    """A NUMA node.  ``distances``: one number a node, 10 to itself, as in the ACPI SLIT; None: 10 and 21."""

    memory: Size
    distances: tuple[int, ...] | None = None


class Nic(Model):
    """A network card on a port of its own.  It has a link that leads nowhere; only its structure is of use."""

    kind: Literal["nic"]
    model: Literal["virtio-net", "e1000e", "igb"]
    node: int = 0


class Disk(Model):
    """A block device on a port of its own, empty, ``size`` bytes.  The disk that the host boots from is not listed."""

    kind: Literal["nvme", "virtio-blk"]
    node: int = 0
    # Checked, it would be refused as a number without a unit in a file that does not mention it.
    size: Annotated[Size, Field(validate_default=False)] = 64 * MIB


Device = Annotated[Nic | Disk, Field(discriminator="kind")]


class HostSpec(Model):
    """One virtual host.  Cores are dealt to the nodes in order, evenly; a node never spans two sockets unless
    there are fewer nodes than sockets."""

    sockets: Annotated[int, Field(ge=1, le=8)] = 2
    cores: Annotated[int, Field(ge=1, le=32, description="cores per socket")] = 3
    threads: Annotated[int, Field(ge=1, le=2, description="threads per core")] = 2
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=8)] = (
        Node(memory=1536 * MIB),
        Node(memory=1536 * MIB),
    )
    devices: tuple[Device, ...] = (
        Nic(kind="nic", model="e1000e", node=0),
        Nic(kind="nic", model="igb", node=1),
        Disk(kind="nvme", node=0),
        Disk(kind="nvme", node=1),
    )
    iommu: Literal["intel", "none"] = "intel"

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores * self.threads

    @property
    def memory(self) -> int:
        """Bytes of all nodes."""
        return sum(node.memory for node in self.nodes)

    def describe(self) -> str:
        """One line for people: ``2 sockets x 3 cores x 2 threads, 2 nodes, 3072MiB, 4 devices``."""

        def count(number: int, word: str) -> str:
            return f"{number} {word}{'' if number == 1 else 's'}"

        cpus = " x ".join((count(self.sockets, "socket"), count(self.cores, "core"), count(self.threads, "thread")))
        return ", ".join(
            (cpus, count(len(self.nodes), "node"), str(_format_size(self.memory)), count(len(self.devices), "device"))
        )

    def node_of_core(self, socket: int, core: int) -> int:
        """The NUMA node of core ``core`` of socket ``socket``."""
        return (socket * self.cores + core) * len(self.nodes) // (self.sockets * self.cores)

    def distance(self, source: int, target: int) -> int:
        row = self.nodes[source].distances
        if row is not None:
            return row[target]
        return 10 if source == target else 21

    @model_validator(mode="after")
    def _check(self) -> HostSpec:
        count = len(self.nodes)
        if self.cpus > MAX_CPUS:
            raise ValueError(f"{self.cpus} CPUs; software emulation of more than {MAX_CPUS} does not finish booting")
        if (self.sockets * self.cores) % count:
            raise ValueError(f"{self.sockets * self.cores} cores cannot be dealt evenly to {count} nodes")
        if count % self.sockets and self.sockets % count:
            raise ValueError(f"{count} nodes on {self.sockets} sockets: a node would span parts of two sockets")
        if self.memory < SMALLEST_HOST:
            raise ValueError(f"{_format_size(self.memory)} in all; a host needs {_format_size(SMALLEST_HOST)}")
        if not self.nodes[0].memory:
            raise ValueError("node 0 has no memory; a PC boots from memory that is on node 0")
        for number, node in enumerate(self.nodes):
            if node.memory % (2 * MIB):
                raise ValueError(f"the memory of node {number} is not a multiple of 2MiB")
            if node.distances is None:
                continue
            if len(node.distances) != count:
                raise ValueError(f"node {number} has {len(node.distances)} distances; there are {count} nodes")
            if node.distances[number] != 10:
                raise ValueError(f"node {number}: the distance to itself is 10 by definition (ACPI SLIT)")
            if any(not 11 <= d <= 254 for i, d in enumerate(node.distances) if i != number):
                raise ValueError(f"node {number}: a distance to another node is 11 to 254 (ACPI SLIT)")
        if len(self.devices) > MAX_DEVICES:
            raise ValueError(f"{len(self.devices)} devices; at most {MAX_DEVICES} fit")
        for number, device in enumerate(self.devices):
            if not 0 <= device.node < count:
                raise ValueError(
                    f"devices[{number}] ({device.kind}) is on node {device.node}; nodes are 0 to {count - 1}"
                )
        return self


#: What `--topology` takes besides a file.
BUILT_IN = {
    "default": HostSpec(),
    "small": HostSpec(cores=2),
    "tiny": HostSpec(sockets=1, cores=2, threads=1, nodes=(Node(memory=1536 * MIB),), devices=(), iommu="none"),
}


def read_spec(topology: str) -> HostSpec:
    """The built-in topology of that name, or the YAML or JSON file.  Raises WrongInput with file and line."""
    if topology in BUILT_IN:
        return BUILT_IN[topology]
    if kind_of(topology) != "file":
        raise WrongInput(
            f"no topology file {topology}",
            hint=f"a YAML file, or one of: {', '.join(sorted(BUILT_IN))}",
        )
    try:
        text = Path(topology).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise WrongInput(f"cannot read {topology}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WrongInput("not UTF-8 text", where=Where(topology)) from None
    try:
        return read_model(HostSpec, text, topology)[0]
    except WrongInput as error:
        error.hint = error.hint or "docs/reference/virtual-host.md lists the keys of a topology file"
        raise


def check_name(name: str) -> str:
    """Give back ``name``, or raise WrongInput: it becomes a folder, a host name and a DMI serial number."""
    if not _NAME.fullmatch(name):
        raise WrongInput(
            f"{name!r} cannot be the name of a virtual host",
            hint="1 to 32 of a-z, 0-9 and '-', not '-' at an end, as in plc-1",
        )
    return name
