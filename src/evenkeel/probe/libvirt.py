"""Ask libvirt about a guest through its C library, in milliseconds; a process of virsh takes half a second a question.

That half second is why: a measurement asks while its load runs, and the load makes it ten times as long.  Only asks,
and hands requests to the guest agent; what changes a guest goes through virsh (:mod:`evenkeel.probe.steps.guests`).

Source: https://libvirt.org/html/libvirt-libvirt-domain.html and libvirt-qemu.html; the ABI of libvirt.so.0 has been
the same since 2009, that of libvirt-qemu.so.0 has the agent since 0.10.
"""

from __future__ import annotations

import ctypes
import errno
import threading
from typing import Any, Callable

URI = "qemu:///system"
#: How long libvirt may take; it sets itself no limit but for the agent.
WITHIN_S = 60.0
#: virDomainState, in the words of virsh.
_STATES = ("no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended")
_NO_DOMAIN = 42  # VIR_ERR_NO_DOMAIN
_INACTIVE = 2  # VIR_DOMAIN_XML_INACTIVE


class Refused(Exception):
    """libvirt answered, with an error.  The text is its own, in English: this process sets no locale."""


def state(guest: str, within_s: float = WITHIN_S) -> str | None:
    """How it is, in the words of virsh domstate; None when libvirt does not know the guest.

    Raises, as all here: OSError ENOENT without libvirt's library, ECONNREFUSED when libvirt cannot be reached,
    ETIMEDOUT when it does not answer; :class:`Refused`.
    """

    def ask(library: _Library, domain: int | None) -> str | None:
        if domain is None:
            return None
        number, reason = ctypes.c_int(), ctypes.c_int()
        if library.main.virDomainGetState(domain, ctypes.byref(number), ctypes.byref(reason), 0) < 0:
            raise Refused(library.error())
        return _STATES[number.value] if 0 <= number.value < len(_STATES) else "no state"

    found: str | None = _ask(guest, ask, within_s)
    return found


def xml(guest: str, inactive: bool = False) -> str:
    """Its definition as it runs, or as it is stored (``inactive``)."""

    def ask(library: _Library, domain: int | None) -> str:
        return library.text(domain and library.main.virDomainGetXMLDesc(domain, _INACTIVE if inactive else 0))

    found: str = _ask(guest, ask, WITHIN_S)
    return found


def agent_command(guest: str, request: str, limit_s: int, on_edge: Callable[[], None] | None = None) -> str:
    """Hand ``request`` (JSON) to the guest agent and return its answer (JSON).

    ``on_edge`` is called just before and just after that: what it takes to reach libvirt lies without.
    """

    def ask(library: _Library, domain: int | None) -> str:
        data = request.encode()
        if on_edge:
            on_edge()
        place = domain and library.qemu.virDomainQemuAgentCommand(domain, data, limit_s, 0)
        if on_edge:
            on_edge()
        return library.text(place)

    # libvirt first lets what was asked before come to its end.
    found: str = _ask(guest, ask, limit_s + WITHIN_S)
    return found


class _Library:
    """libvirt's two libraries, and the connection, which is made anew when it is lost."""

    def __init__(self) -> None:
        try:
            self.main, self.qemu = ctypes.CDLL("libvirt.so.0"), ctypes.CDLL("libvirt-qemu.so.0")
        except OSError as error:
            raise OSError(errno.ENOENT, "libvirt is not installed: %s" % error) from None
        self._free = ctypes.CDLL(None).free
        pointer, word, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        signatures: tuple[tuple[Any, Any, list[Any]], ...] = (
            (self._free, None, [pointer]),
            (self.main.virConnectOpen, pointer, [word]),
            (self.main.virConnectClose, number, [pointer]),
            (self.main.virConnectGetLibVersion, number, [pointer, pointer]),
            (self.main.virGetLastErrorMessage, word, []),
            (self.main.virGetLastErrorCode, number, []),
            (self.main.virSetErrorFunc, None, [pointer, pointer]),
            (self.main.virDomainLookupByName, pointer, [pointer, word]),
            (self.main.virDomainFree, number, [pointer]),
            (self.main.virDomainGetState, number, [pointer, pointer, pointer, ctypes.c_uint]),
            (self.main.virDomainGetXMLDesc, pointer, [pointer, ctypes.c_uint]),
            (self.qemu.virDomainQemuAgentCommand, pointer, [pointer, word, number, ctypes.c_uint]),
        )
        for function, result, arguments in signatures:
            function.restype, function.argtypes = result, arguments
        # Without a function of ours it prints each error; stderr belongs to the probe.
        self._silent = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(lambda data, error: None)
        self.main.virSetErrorFunc(None, ctypes.cast(self._silent, ctypes.c_void_p))
        self._connection: int | None = None

    def error(self) -> str:
        """Of the last call, in this thread."""
        said = self.main.virGetLastErrorMessage()
        return said.decode(errors="replace") if said else "libvirt failed without a word"

    def text(self, place: int | None) -> str:
        """Take a string that libvirt made; nothing was made: raise Refused with what the last call said."""
        if not place:
            raise Refused(self.error())
        try:
            return ctypes.string_at(place).decode(errors="replace")
        finally:
            self._free(place)

    def connection(self) -> int:
        # Asked, because a connection does not notice by itself that the other end was restarted.
        version = ctypes.c_ulong()
        if self._connection and self.main.virConnectGetLibVersion(self._connection, ctypes.byref(version)) < 0:
            self.main.virConnectClose(self._connection)
            self._connection = None
        if not self._connection:
            self._connection = self.main.virConnectOpen(URI.encode())
        if not self._connection:
            raise OSError(errno.ECONNREFUSED, self.error(), URI)
        return self._connection

    def domain(self, guest: str) -> int | None:
        found: int | None = self.main.virDomainLookupByName(self.connection(), guest.encode())
        if not found and self.main.virGetLastErrorCode() != _NO_DOMAIN:
            raise Refused(self.error())
        return found or None


_library: _Library | None = None


def _ask(guest: str, question: Callable[[_Library, int | None], Any], within_s: float) -> Any:
    """Ask in a thread of its own, which is left behind with its connection when libvirt hangs."""
    global _library
    answers: list[Any] = []
    library = _library = _library or _Library()

    def ask() -> None:
        try:
            domain = library.domain(guest)
            try:
                answers.append(question(library, domain))
            finally:
                if domain:
                    library.main.virDomainFree(domain)
        except (OSError, Refused) as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(within_s)
    if not answers:
        _library = None
        raise OSError(errno.ETIMEDOUT, "libvirt did not answer within %.0f s" % within_s, URI)
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]
