"""Queues of a network interface as its driver tells and sets them, and its offloads: the ioctl of ethtool -l, -L, -K.

Source: include/uapi/linux/ethtool.h (struct ethtool_channels).  Works on the running system only.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET, _SET = 0x3C, 0x3D  # ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS
_FIELDS = ("max_rx", "max_tx", "max_other", "max_combined", "rx", "tx", "other", "combined")
_LONGEST_NAME = 15  # IFNAMSIZ with its final zero


def channels(nic: str) -> dict[str, int] | None:
    """Counts and limits by name (:data:`_FIELDS`); None: no such interface, or its driver has no such thing.

    Raises OSError for anything else.
    """
    request = array.array("I", [_GET] + [0] * len(_FIELDS))
    try:
        _ioctl(nic, request)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            return None
        raise
    return {name: request[place] for place, name in enumerate(_FIELDS, 1)}


def set_channels(nic: str, counts: dict[str, int]) -> None:
    """``{"combined": 4}``: these counts, all others as they are.  The driver resets the device.  Raises OSError."""
    now = channels(nic)
    if now is None:
        raise OSError(errno.EOPNOTSUPP, "the interface %s is gone or has no channels to set" % nic)
    wanted = dict(now, **counts)
    _ioctl(nic, array.array("I", [_SET] + [wanted[name] for name in _FIELDS]))


def switch_off(nic: str, command: int) -> None:
    """Switch an offload off.  ``command``: that which sets it, such as ETHTOOL_STSO.  Raises OSError."""
    _ioctl(nic, array.array("I", [command, 0]))


def _ioctl(nic: str, request: array.array[int]) -> None:
    name = nic.encode()
    if not 0 < len(name) <= _LONGEST_NAME or b"\0" in name:
        raise OSError(errno.ENODEV, "%r is not the name of an interface" % nic)
    address, _ = request.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control.fileno(), _SIOCETHTOOL, struct.pack("16sP16x", name, address))
