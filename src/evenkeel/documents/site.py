"""Site: what the owner wants.  Hosts, guests, goals; written by a person in YAML.

Models and their own consistency only: :mod:`evenkeel.plan.sitefile` reads the YAML and gives errors their line;
whether a site fits its hosts is the planner's question.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet
from evenkeel.documents.quantity import Bytes, Nanoseconds

GoalLevel = Literal["flexible", "balanced", "performance", "realtime"]
Trust = Literal["yields", "spins"]
#: What a goal never implies, because it weakens security or hides errors of the hardware: the owner has to say so.
ConsentKey = Literal[
    "ignore-corrected-memory-errors",
    "mitigations-off:itlb-multihit",
    "mitigations-off:l1tf",
    "no-audit",
    "no-transactional-memory",
]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"


class Override(Model):
    """A rule whose value the owner sets, or switches off with ``off: true``.  The reason is kept in the plan."""

    value: str | None = None
    off: bool = False
    because: str


class Consent(Model):
    """The owner takes a risk that no goal implies.  The reason is kept in the plan."""

    because: str


class DataPlane(Model):
    """CPUs that poll network cards for packets: ``cpus``, or ``cores`` for each of the cards in ``near``."""

    near: tuple[str, ...] = Field(
        default=(), description="network interfaces or PCI addresses whose node they are on", examples=[["enp1s0"]]
    )
    cores: int = Field(default=1, ge=1, le=64, description="whole cores for each card; one thread of each polls")
    cpus: CpuSet | None = Field(
        default=None, description="the CPUs that poll, when the owner must decide", examples=["2,10"]
    )


class FunctionWish(Model):
    """PCI functions that a guest is to have: any that have every property which is named here."""

    pool: str | None = Field(default=None, description="name under `pools` of the host", examples=["gpu"])
    type: Literal["vf", "pf", "pci"] | None = Field(
        default=None, description="vf: a virtual function; pf: a physical one that has such; pci: any other"
    )
    network: str | None = Field(default=None, description="the network that it is wired to", examples=["blue"])
    count: int = Field(default=1, ge=1, le=64)
    near: Literal["required", "preferred", "any"] = Field(
        default="required", description="whether it is to be on a node of the guest"
    )


class PlaceWish(Model):
    """What matters when a host is chosen for a guest; what it is on that host, the other keys say."""

    owner: str | None = Field(default=None, description="to whom it is accounted", examples=["team-a"])
    priority: int = Field(default=0, ge=-1000, le=1000, description="where not all fit, the higher one is placed")
    networks: tuple[str, ...] = Field(
        default=(), description="networks that its host is to be wired to", examples=[["blue", "red"]]
    )
    features: tuple[str, ...] = Field(default=(), description="what its host is to have", examples=[["avx512f"]])
    functions: tuple[FunctionWish, ...] = Field(default=(), description="PCI functions that it gets")
    apart: tuple[str, ...] = Field(
        default=(), description="groups of which no two guests are on one host", examples=[["upf"]]
    )
    apart_racks: tuple[str, ...] = Field(default=(), description="groups of which no two guests are in one rack")
    together: tuple[str, ...] = Field(default=(), description="groups whose guests are all on one host")
    max_distance: int | None = Field(
        default=None, ge=10, le=255, description="between any two of its NUMA nodes, as the firmware counts: 10 is none"
    )
    l3: Literal["prefer", "require"] = Field(
        default="prefer", description="whether the vCPUs of a cell must share one L3 cache"
    )
    stay: bool = Field(default=False, description="never move it, once it sits somewhere")


class HostPlace(Model):
    """What placing must know of a host and no fact tells."""

    owner: str | None = None
    rack: str | None = Field(default=None, description="what fails together with it", examples=["r1"])
    networks: tuple[str, ...] = Field(default=(), description="networks that it is wired to", examples=[["blue"]])
    features: tuple[str, ...] = Field(default=(), description="what a guest may insist on", examples=[["certified"]])
    pools: dict[str, tuple[str, ...]] = Field(
        default={},
        description="name -> PCI addresses of functions that are alike",
        examples=[{"gpu": ["0000:3b:00.0"]}],
    )
    wires: dict[str, str] = Field(
        default={}, description="network interface or PCI address -> its network", examples=[{"enp1s0f0": "blue"}]
    )
    power_watts: int | None = Field(default=None, ge=0, le=1_000_000, description="what it takes when it is on")
    overcommit: int = Field(
        default=4, ge=1, le=64, description="vCPUs of flexible guests for each CPU that is left to share"
    )
    drain: bool = Field(default=False, description="nothing is placed there, and what is there leaves")
    vfio: Literal["managed", "bound"] = Field(
        default="managed",
        description="how functions of guests get to vfio-pci: managed, by libvirt at each start; bound, by the owner, "
        "before",
    )


class Placing(Model):
    """Limits of the whole site, for guests that name no host."""

    max_hosts: int | None = Field(default=None, ge=1, le=1_000_000, description="hosts that may be used at most")
    power_watts: int | None = Field(default=None, ge=0, le=1_000_000_000, description="what they may take together")
    standby: bool = Field(default=False, description="keep room for the guests of any one host that fails")


class HostWish(Model):
    """A host under Evenkeel's care."""

    address: str = Field(description="local, ssh://root@HOST[:PORT], virtual:NAME", examples=["virtual:plc"])
    housekeeping: CpuSet | None = Field(
        default=None, description="CPUs that stay with the host; computed when left out", examples=["0-1"]
    )
    data_plane: DataPlane | None = Field(
        default=None, description="CPUs that poll network cards for packets (Open vSwitch with DPDK)"
    )
    overrides: dict[str, Override] = Field(default={}, description="rule id -> what to do instead")
    consents: dict[ConsentKey, Consent] = Field(
        default={}, description="what no goal implies, because it weakens security or hides errors of the hardware"
    )
    place: HostPlace = Field(default=HostPlace(), description="what placing must know of it and no fact tells")


class Boot(Model):
    """Direct kernel boot of a guest.  Paths are on the host."""

    kernel: str
    initrd: str | None = None
    arguments: str = ""


class Disk(Model):
    path: str = Field(description="image file or block device on the host")
    format: Literal["raw", "qcow2"] = "raw"


class Network(Model):
    """How the guest is wired.  ``bridge``: a Linux bridge on the host; ``network``: a libvirt network;
    ``user``: user-mode networking.  Exactly one.
    """

    bridge: str | None = None
    network: str | None = None
    user: bool = False


class CellWish(Model):
    """What a guest has on one NUMA node."""

    vcpus: int = Field(ge=1, le=710)
    memory: Bytes = Field(examples=["64GiB"])


class GuestWish(Model):
    """A guest and what it needs."""

    host: str | None = Field(default=None, description="name of its host; chosen when left out")
    goal: GoalLevel = "flexible"
    latency: Nanoseconds | None = Field(
        default=None, description="the deadline that a measurement must prove", examples=["100us"]
    )
    architecture: str = "x86_64"
    vcpus: int = Field(ge=1, le=710)
    realtime_vcpus: CpuSet | None = Field(
        default=None,
        description="vCPUs that run at real-time priority; default: all but 0, which keeps the guest's own house",
        examples=["1"],
    )
    memory: Bytes = Field(examples=["4GiB"])
    page_size: Bytes | None = Field(default=None, description="huge page size; chosen when left out", examples=["2MiB"])
    numa: Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": 64})] | Literal["auto"] | None = Field(
        default=None,
        description="over how many NUMA nodes it is spread, in equal cells; auto: over as few as it fits on; one when "
        "left out",
        examples=[2, "auto"],
    )
    cells: tuple[CellWish, ...] = Field(
        default=(), description="its NUMA cells one by one, where they are not equal; each is on a node of its own"
    )
    l3: Bytes | None = Field(
        default=None,
        description="how much of the L3 cache its real-time vCPUs have for themselves, where the CPU can divide it; "
        "in proportion to their cores when left out",
        examples=["6MiB"],
    )
    trust: Trust = Field(
        default="yields",
        description="whether this guest may occupy its CPU forever (spins) or always goes idle in between (yields)",
    )
    near: str | None = Field(default=None, description="a NIC name or PCI address on the host", examples=["enp1s0"])
    cpus: CpuSet | None = Field(default=None, description="host CPUs to use, when the owner must decide")
    boot: Boot | None = None
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()
    place: PlaceWish = Field(default=PlaceWish(), description="what matters when a host is chosen for it")


class Site(Document):
    """Hosts, guests, goals."""

    kind: Literal["Site"] = "Site"
    version: Literal[1] = 1
    hosts: dict[str, HostWish] = Field(min_length=1)
    guests: dict[str, GuestWish] = {}
    placing: Placing = Field(default=Placing(), description="limits of the whole site, where hosts are chosen")
