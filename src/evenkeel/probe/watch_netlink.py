"""Two multicast groups of the kernel: uevents (devices and CPUs come and go) and rtnetlink (links go up and down).

Parsers take bytes and give plain data; a message that is cut short or is none is left out, never an error.  Only what
the kernel itself sent is believed: anybody may send to these groups.  Must not ask for anything and must not change
anything: it listens.

Source: lib/kobject_uevent.c, uapi/linux/rtnetlink.h, uapi/linux/if_link.h, netlink(7).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from typing import Any, Iterator

UEVENT = 15  # NETLINK_KOBJECT_UEVENT
_KERNEL_GROUP = 1  # udev repeats every event on group 2 for its own listeners
ROUTE = 0  # NETLINK_ROUTE
_LINK_GROUP = 1  # RTMGRP_LINK

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_NEW_LINK, _DELETED_LINK = 16, 17
_NAME = 3  # IFLA_IFNAME
_UP, _LOWER_UP = 0x1, 0x10000  # IFF_UP, IFF_LOWER_UP: switched on, and has a carrier
#: A burst (an SR-IOV card brings 256 functions at once) must fit; the kernel doubles it.
_BUFFER = 1 << 20
_CPU = re.compile(r"/devices/system/cpu/cpu(\d+)\Z")


def listen(protocol: int) -> socket.socket:
    """A socket that hears what the kernel tells everybody.  Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        try:
            made.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        except OSError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        made.bind((0, _KERNEL_GROUP if protocol == UEVENT else _LINK_GROUP))
    except OSError:
        made.close()
        raise
    return made


def receive(listener: socket.socket) -> tuple[list[bytes], bool]:
    """What has come, and whether the kernel had to drop some because nobody read for too long."""
    found: list[bytes] = []
    lost = False
    while True:
        try:
            data, (port, _groups) = listener.recvfrom(1 << 16)
        except BlockingIOError:
            return found, lost
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost = True
            continue
        if port == 0:  # from the kernel
            found.append(data)


def parse_uevent(message: bytes) -> dict[str, str] | None:
    """``ACTION``, ``DEVPATH``, ``SUBSYSTEM`` and the rest; None for what is no event of the kernel."""
    head, *lines = message.split(b"\0")
    if b"@/" not in head:
        return None
    pairs = (os.fsdecode(line).partition("=") for line in lines)
    found = {key: value for key, equals, value in pairs if equals}
    return found if {"ACTION", "DEVPATH", "SUBSYSTEM"} <= found.keys() else None


def cpu_or_device(event: dict[str, str]) -> dict[str, Any] | None:
    """The typed event: ``cpu`` with ``online``, or ``device``; None for one that says nothing new about the machine.

    A disk that changes its medium or a battery that changes its charge is no other machine: ``change`` is left out,
    and so are uevents of what has no driver of its own (queues, block partitions, backing devices of memory).
    """
    action, path, subsystem = event["ACTION"], event["DEVPATH"], event["SUBSYSTEM"]
    cpu = _CPU.match(path)
    if cpu and action in ("online", "offline", "add", "remove"):
        return {"kind": "cpu", "cpu": int(cpu.group(1)), "online": action in ("online", "add")}
    if subsystem in ("pci", "net", "nvme", "memory") and action in (
        "add",
        "remove",
        "bind",
        "unbind",
        "online",
        "offline",
    ):
        if subsystem == "net" and path.startswith("/devices/virtual/"):
            return None  # taps and bridges come and go with guests
        return {"kind": "device", "action": action, "subsystem": subsystem, "name": path.rpartition("/")[2]}
    return None


def parse_links(data: bytes) -> Iterator[dict[str, Any]]:
    """``name``, ``up`` (switched on, and with a carrier) and ``gone`` of each link that a datagram is about."""
    while len(data) >= _HEADER.size:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
        if kind not in (_NEW_LINK, _DELETED_LINK) or len(message) < _LINK.size:
            continue
        family, _type, _index, flags, _change = _LINK.unpack_from(message)
        name = _attribute(message[_LINK.size :], _NAME)
        if family == 0 and name:  # a bridge tells about its ports in a family of its own
            both = _UP | _LOWER_UP
            up = kind == _NEW_LINK and flags & both == both
            yield {"name": os.fsdecode(name.rstrip(b"\0")), "up": up, "gone": kind == _DELETED_LINK}


def _attribute(data: bytes, wanted: int) -> bytes | None:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return None
        if kind == wanted:
            return data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return None
