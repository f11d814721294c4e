"""A network of two processes: each in a network namespace of its own, joined by a pair of virtual interfaces.

What one sends goes down its whole stack and, as a soft interrupt of receiving, up that of the other, as with a network
card; loopback skips half of that.  Namespaces and interfaces end with their processes, and nobody else can see them, so
nothing is left and no name or address can clash.  Must not measure anything but its own packets.

Source: veth(4), rtnetlink(7), netdevice(7), uapi/linux/if_link.h, uapi/linux/veth.h (VETH_INFO_PEER).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import time

from evenkeel.probe.ethtool import switch_off
from evenkeel.probe.sample import read

NAME = "evk-load"
_CLONE_NEWNET = 0x40000000
_HEADER, _LINK, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")
_NEWLINK, _FLAGS = 16, 0x1 | 0x4 | 0x200 | 0x400  # RTM_NEWLINK; request, acknowledge, exclusive, create
_IFNAME, _LINKINFO, _NET_NS_PID, _INFO_KIND, _INFO_DATA, _PEER = 3, 18, 19, 1, 2, 1
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _UP = 0x8914, 0x8916, 0x891C, 0x1
#: Segments are cut to the size of a packet here, as a wire needs them: ETHTOOL_STSO, ETHTOOL_SGSO.
_OFFLOADS = (0x1F, 0x24)
_libc = ctypes.CDLL(None, use_errno=True)


def leave_network() -> None:
    """Put this process into a network namespace of its own.  Raises EPERM when not root."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def join_with(pid: int) -> None:
    """Make the pair: one end here, the other in the namespace of process ``pid``.

    Raises EOPNOTSUPP where the kernel has no veth.
    """
    peer = _LINK.pack(0, 0, 0, 0, 0) + _text(_IFNAME, NAME) + _attribute(_NET_NS_PID, struct.pack("=I", pid))
    info = _text(_INFO_KIND, "veth") + _attribute(_INFO_DATA, _attribute(_PEER, peer))
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(_IFNAME, NAME) + _attribute(_LINKINFO, info)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _NEWLINK, _FLAGS, 1, 0) + body)
        answer = kernel.recv(4096)
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    if code:
        raise OSError(code, "cannot make a pair of veth interfaces: %s" % os.strerror(code))


def switch_on(address: str, limit_s: float = 10.0) -> None:
    """Give this end its address and switch it on; where the other end makes the pair, wait for it.

    Raises ENODEV when it does not come.
    """
    until = time.monotonic() + limit_s
    while NAME not in (name for _, name in socket.if_nameindex()):
        if time.monotonic() > until:
            raise OSError(errno.ENODEV, "there is no interface %s" % NAME)
        time.sleep(0.01)
    with contextlib.suppress(OSError):  # then its packets are larger, that is all
        for command in _OFFLOADS:
            switch_off(NAME, command)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.252")):
            inet = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control.fileno(), request, struct.pack("16s16s8x", NAME.encode(), inet))
        fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", NAME.encode(), _UP))


def received(pid: int) -> int:
    """Packets that have come in at the end of process ``pid`` so far; 0 when it, or its interface, is gone."""
    for line in (read("/proc/%d/net/dev" % pid) or "").splitlines():
        name, colon, numbers = line.partition(":")
        if colon and name.strip() == NAME:
            return int(numbers.split()[1])
    return 0


def receiving() -> dict[int, int]:
    """CPU -> how many soft interrupts of received packets it has run so far, of all networks."""
    lines = (read("/proc/softirqs") or "").splitlines()
    cpus = [int(word[3:]) for word in (lines[0].split() if lines else []) if word[3:].isdecimal()]
    for line in lines[1:]:
        name, _, numbers = line.partition(":")
        if name.strip() == "NET_RX":
            return dict(zip(cpus, map(int, numbers.split())))  # noqa: B905
    return {}


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")
