"""Ask libvirt about a guest, and run a program inside it through the guest agent.  Never changes a guest.

Talks to libvirt through its library (:mod:`evenkeel.probe.libvirt`).
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import time
from typing import Any, Callable, Sequence

from evenkeel.probe import libvirt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
OnProgress = Callable[[int, int, str], None]


def guest_state(guest: str) -> dict[str, Any]:
    """``state`` (as virsh domstate prints it; "undefined" when libvirt does not know it), ``live`` and ``defined`` XML.

    Raises ENOENT when libvirt is not installed, ECONNREFUSED when it does not answer.
    """
    try:
        state = libvirt.state(_name(guest))
        if state is None:
            return {"state": "undefined", "live": None, "defined": None}
    except libvirt.Refused as error:
        raise OSError(errno.ECONNREFUSED, str(error), libvirt.URI) from None
    live = _xml(guest) if state != "shut off" else None
    return {"state": state, "live": live, "defined": _xml(guest, inactive=True)}


def _xml(guest: str, inactive: bool = False) -> str | None:
    try:
        return libvirt.xml(guest, inactive)
    except libvirt.Refused:  # by now it is gone
        return None


def guest_exec(
    guest: str, argv: Sequence[str], limit_s: float = 30.0, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Run a program in the guest: ``{"exit": code, "signal": n, "stdout": text, "stderr": text}``.

    Raises ENOTCONN without an agent, ETIMEDOUT when it takes too long (it goes on in the guest: the agent of a guest
    cannot kill what it started), ENOENT and the like as the agent says.
    """
    pid = guest_start(guest, argv)
    start = time.monotonic()
    wait = 0.05
    while True:
        ran = guest_ended(guest, pid)
        if ran is not None:
            return ran
        spent = time.monotonic() - start
        if spent > limit_s:
            raise OSError(errno.ETIMEDOUT, "%s did not end within %.0f s in guest %s" % (argv[0], limit_s, guest))
        if on_progress:
            on_progress(int(spent * 10), int(limit_s * 10), "%s in guest %s" % (os.path.basename(argv[0]), guest))
        time.sleep(wait)
        wait = min(1.0, wait * 2)


def guest_start(guest: str, argv: Sequence[str]) -> int:
    """Start a program in the guest and return its process number there."""
    answer = agent(guest, "guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True})
    return int(answer["pid"])


def guest_ended(guest: str, pid: int) -> dict[str, Any] | None:
    """How a program that was started in the guest ended, as :func:`guest_exec` says it; None while it runs."""
    status = agent(guest, "guest-exec-status", pid=pid)
    if not status.get("exited"):
        return None
    return {
        "exit": status.get("exitcode"),
        "signal": status.get("signal"),
        "stdout": base64.b64decode(status.get("out-data", "")).decode(errors="replace"),
        "stderr": base64.b64decode(status.get("err-data", "")).decode(errors="replace"),
    }


def agent(
    guest: str, command: str, limit_s: int = 20, on_edge: Callable[[], None] | None = None, /, **arguments: Any
) -> Any:
    """One command of the guest agent, and what it returns: mostly a dictionary, the number of an opened file.

    ``on_edge``: as of :func:`evenkeel.probe.libvirt.agent_command`.  Raises ENOTCONN without an agent, or when it does
    not answer in time, EPROTO with its words when it refuses.
    """
    request = json.dumps({"execute": command, "arguments": arguments})
    try:
        return json.loads(libvirt.agent_command(_name(guest), request, limit_s, on_edge))["return"]
    except libvirt.Refused as error:
        said = str(error)
        lost = ("not connected" in said, "not configured" in said, "not responding" in said, "not running" in said)
        raise OSError(errno.ENOTCONN if any(lost) else errno.EPROTO, said) from None


def _name(guest: str) -> str:
    if not _NAME.match(guest):
        raise OSError(errno.EINVAL, "%r is not the name of a guest" % guest)
    return guest


def guest_file(guest: str, path: str, offset: int = 0, most: int = 1 << 16) -> bytes:
    """A piece of a file in the guest.  Raises ENOENT when it cannot be opened there."""
    try:
        handle = agent(guest, "guest-file-open", path=path, mode="r")
    except OSError as error:
        raise OSError(errno.ENOENT if error.errno == errno.EPROTO else error.errno, error.strerror, path) from None
    try:
        if offset:
            agent(guest, "guest-file-seek", handle=handle, offset=offset, whence="set")
        answer = agent(guest, "guest-file-read", handle=handle, count=most)
    finally:
        agent(guest, "guest-file-close", handle=handle)
    return base64.b64decode(answer["buf-b64"])
