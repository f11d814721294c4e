"""Lines to serial consoles: IPMI serial over LAN, sockets, devices, telnet or ssh to a terminal server, virtual hosts.

A line is opened, read, written and closed, and can be freed when another session holds it.  It knows no readers and
keeps nothing; who may write is not its business (:mod:`evenkeel.lab.console`).  Everything runs in one event loop and
never blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
import termios
import tty
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import IO, Protocol

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab.power_drivers import PowerFailed, Way
from evenkeel.lab.power_drivers.ipmi import Ipmitool
from evenkeel.lab.words import cause

#: A character that nobody types, instead of "~": ipmitool ends its session at "~.".
SOL_ESCAPE = b"\x1e"
_SOL_OPEN = b"[SOL Session operational."
_SOL_HELD = b"already active on another session"
_OPEN_S = 8.0
#: Bytes that wait to be sent before a line counts as blocked.
_MOST_WAITING = 1 << 20


class LineFailed(EvenkeelError):
    """It does not open.  ``held``: because another session has it, so that freeing it helps."""

    def __init__(self, message: str, *, held: bool = False) -> None:
        super().__init__(message)
        self.held = held


class Line(Protocol):
    async def open(self) -> None:
        """Raises LineFailed, WrongInput."""

    async def read(self) -> bytes:
        """What came; ``b""`` at its end.  May be cancelled without a loss."""

    def write(self, data: bytes) -> None: ...

    async def alive(self) -> bool | None:
        """Whether the other side still has our session, asked another way; None: cannot be asked."""

    async def free(self) -> str:
        """End whatever session holds it, ours as well; says how.  Raises LineFailed."""

    async def close(self) -> None: ...


@dataclass
class Heard:
    """How much of a virtual host's serial log was handed on: of which file (inode), and up to which byte."""

    file: int | None = None
    bytes: int = 0


def line_for(way: Way, heard: Heard) -> Line:
    """The line of a console endpoint; ``heard``: kept from one opening of it to the next.  Raises WrongInput.

    Drivers: ``ipmi`` (address of the BMC), ``unix`` (path), ``tty`` (path of a device), ``telnet`` or ``tcp``
    (HOST:PORT), ``ssh`` (USER@HOST:PORT, option ``command``), ``virtual`` (name of a virtual host).
    """
    if way.driver == "ipmi":
        return Sol(way)
    if way.driver == "unix":
        return Stream(lambda: _unix(way.address))
    if way.driver == "tty":
        return Tty(way.address, int(way.options.get("baud", 115200)))
    if way.driver in ("telnet", "tcp"):
        host, port = way.host_and_port(23)
        return (Telnet if way.driver == "telnet" else Stream)(lambda: _tcp(host, port))
    if way.driver == "ssh":
        return Program(ssh_argv(way))
    if way.driver == "virtual":
        return Virtual(way.address.removeprefix("virtual:"), heard)
    raise WrongInput(f"no console driver {way.driver!r}", hint="ipmi, unix, tty, telnet, tcp, ssh or virtual")


# -- sockets --------------------------------------------------------------------------------------------------------


async def _unix(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(client, path)
    except OSError:
        client.close()
        raise
    return client


async def _tcp(host: str, port: int) -> socket.socket:
    _, writer = await asyncio.open_connection(host, port)
    client: socket.socket = writer.get_extra_info("socket").dup()
    writer.transport.abort()
    return client


class Stream:
    """Bytes as they are, over a socket."""

    def __init__(self, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        self._connect = connect
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        try:
            async with asyncio.timeout(_OPEN_S):
                client = await self._connect()
            self._reader, self._writer = await asyncio.open_connection(sock=client)
        except (OSError, TimeoutError) as error:
            raise LineFailed(cause(error) if str(error) else "no answer") from None
        except EvenkeelError as error:
            raise LineFailed(error.message) from None

    async def read(self) -> bytes:
        assert self._reader
        try:
            return await self._reader.read(65536)
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        assert self._writer
        if self._writer.transport.get_write_buffer_size() < _MOST_WAITING:
            self._writer.write(data)

    async def alive(self) -> bool | None:
        return None

    async def free(self) -> str:
        await self.close()
        return "connected anew"

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._reader = self._writer = None


class Virtual(Stream):
    """A virtual host's serial port.

    What it said while nobody was connected comes first: a host that is switched on has shown its boot loader before
    anybody can connect.  So what is read is QEMU's log of the port, which has all of it once; the socket says when.
    """

    #: QEMU sends first and writes then, so the log may be a moment behind the last byte that it sent.
    _LOOK_S = 0.2

    def __init__(self, name: str, heard: Heard) -> None:
        super().__init__(self._connected)
        self._name = name
        self._heard = heard
        self._log: IO[bytes] | None = None

    async def _connected(self) -> socket.socket:
        from evenkeel.machines.virtual import lifecycle, qemu

        folder = lifecycle.folder_of(self._name)
        client = await asyncio.to_thread(qemu.connect, folder, "console.sock", timeout_s=3.0)
        with contextlib.suppress(OSError):
            self._log = (folder / qemu.SERIAL_LOG).open("rb", buffering=0)
            now = os.fstat(self._log.fileno())
            if self._heard.file is None:  # nobody asks for what was before the first opening
                self._heard.bytes = now.st_size
            elif self._heard.file != now.st_ino:
                self._heard.bytes = 0
            self._heard.file = now.st_ino
        return client

    async def read(self) -> bytes:
        if self._log is None:
            return await super().read()
        rung = b"?"
        while not (said := self._logged()) and rung:
            try:
                async with asyncio.timeout(self._LOOK_S):
                    rung = await super().read()
            except TimeoutError:
                continue
        return said

    def _logged(self) -> bytes:
        """What the log has gained."""
        if self._log is None:
            return b""
        said = os.pread(self._log.fileno(), 65536, self._heard.bytes)
        self._heard.bytes += len(said)
        return said

    async def close(self) -> None:
        await super().close()
        if self._log is not None:
            self._log.close()
            self._log = None


class Telnet(Stream):
    """RFC 854, as much as a terminal server asks for: echo and go-ahead are its own, eight bits both ways."""

    _IAC, _DONT, _DO, _WONT, _WILL, _SB, _SE = 255, 254, 253, 252, 251, 250, 240
    _WANTED = (0, 1, 3)  # binary, echo, suppress go-ahead
    _OFFERED = (0, 3)

    def __init__(self, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        super().__init__(connect)
        self._rest = b""
        self._binary = False

    async def open(self) -> None:
        self._rest, self._binary = b"", False
        await super().open()

    async def read(self) -> bytes:
        while data := await super().read():
            if text := self._text(data):
                return text
        return b""

    def write(self, data: bytes) -> None:
        data = data.replace(b"\xff", b"\xff\xff")
        super().write(data if self._binary else data.replace(b"\r", b"\r\0"))

    def _text(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        out = bytearray()
        at = 0
        while at < len(data):
            if data[at] != self._IAC:
                if data[at] or self._binary:  # NUL after CR is filling
                    out.append(data[at])
                at += 1
                continue
            command = data[at + 1] if at + 1 < len(data) else None
            if command == self._IAC:
                out.append(self._IAC)
                at += 2
            elif command == self._SB:
                end = data.find(bytes((self._IAC, self._SE)), at)
                if end < 0:
                    break
                at = end + 2
            elif command in (self._DO, self._DONT, self._WILL, self._WONT):
                if at + 2 >= len(data):
                    break
                self._answer(command, data[at + 2])
                at += 3
            elif command is None:
                break
            else:
                at += 2
        self._rest = data[at:]
        return bytes(out)

    def _answer(self, command: int, option: int) -> None:
        if command == self._WILL:
            reply = self._DO if option in self._WANTED else self._DONT
        elif command == self._DO:
            reply = self._WILL if option in self._OFFERED else self._WONT
            self._binary = self._binary or option == 0
        else:
            return  # a refusal needs no answer
        super().write(bytes((self._IAC, reply, option)))


# -- devices and programs -------------------------------------------------------------------------------------------


class _Descriptor:
    """A file descriptor that the loop watches."""

    def __init__(self) -> None:
        self._fd = -1
        self._came: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = bytearray()

    def _watch(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._came = asyncio.Queue()
        self._waiting.clear()
        asyncio.get_running_loop().add_reader(fd, self._take)

    def _take(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other end of a pseudo-terminal is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._came.put_nowait(data)

    async def read(self) -> bytes:
        data = await self._came.get()
        if not data:
            self._came.put_nowait(b"")  # an end stays an end
        return data

    def write(self, data: bytes) -> None:
        if self._fd < 0 or len(self._waiting) > _MOST_WAITING:
            return
        self._waiting += data
        self._send()

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except BlockingIOError:
            loop.add_writer(self._fd, self._send)
            return
        except OSError:
            self._waiting.clear()
        loop.remove_writer(self._fd)

    async def alive(self) -> bool | None:
        return None

    def _unwatch(self) -> None:
        if self._fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1


class Tty(_Descriptor):
    """A serial device or pseudo-terminal of this machine."""

    def __init__(self, path: str, baud: int) -> None:
        super().__init__()
        self._path = path
        self._baud = baud

    async def open(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise LineFailed(f"{self._path}: {error.strerror}") from None
        try:
            tty.setraw(fd)
            speed = getattr(termios, f"B{self._baud}")
            settings = termios.tcgetattr(fd)
            settings[2] |= termios.CLOCAL | termios.CREAD
            settings[4] = settings[5] = speed
            termios.tcsetattr(fd, termios.TCSANOW, settings)
        except (termios.error, AttributeError) as error:
            os.close(fd)
            raise LineFailed(f"{self._path} is no serial device that runs at {self._baud} baud: {error}") from None
        self._watch(fd)

    async def free(self) -> str:
        await self.close()
        return "opened anew"

    async def close(self) -> None:
        self._unwatch()


class Program(_Descriptor):
    """A program on a pseudo-terminal of its own, which it finds raw."""

    def __init__(self, argv: list[str], environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._argv = argv
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        ours, its = pty.openpty()
        try:
            tty.setraw(its)
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=its, stdout=its, stderr=its, env=self._environment, start_new_session=True
            )
        except OSError as error:
            os.close(ours)
            raise LineFailed(f"{self._argv[0]}: {error.strerror}") from None
        finally:
            os.close(its)
        self._watch(ours)

    async def free(self) -> str:
        await self.close()
        return "connected anew"

    async def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(2.0):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
            self._process = None
        self._unwatch()


class Sol(Program):
    """Serial over LAN of IPMI 2.0 (chapter 15) by ipmitool.

    A BMC serves one session at a time and does not notice when its client is gone: measured with ipmi_sim, a client
    that was killed leaves "SOL payload already active on another session" until somebody deactivates it.
    """

    def __init__(self, way: Way) -> None:
        super().__init__([])
        self._tool = Ipmitool(way)
        self._ours = False

    async def open(self) -> None:
        if await self.alive():
            raise LineFailed("another session holds the serial over LAN", held=True)
        cipher = self._tool.cipher
        assert cipher is not None
        self._argv = self._tool.argv(cipher, "-e", SOL_ESCAPE.decode(), "sol", "activate", wait_s=2)
        self._environment = self._tool.environment()
        await super().open()
        said = b""
        try:
            async with asyncio.timeout(_OPEN_S):
                while _SOL_OPEN not in said or b"\n" not in said.partition(_SOL_OPEN)[2]:
                    data = await self.read()
                    said += data
                    if not data or _SOL_HELD in said:
                        raise LineFailed(_words(said) or "ipmitool ended", held=_SOL_HELD in said)
        except TimeoutError:
            await self.close()
            raise LineFailed("no session within 8 s") from None
        except LineFailed:
            await self.close()
            raise
        self._ours = True
        rest = said.partition(_SOL_OPEN)[2].partition(b"\n")[2]
        if rest:
            self._came.put_nowait(rest)

    def write(self, data: bytes) -> None:
        super().write(data.replace(SOL_ESCAPE, b""))

    async def alive(self) -> bool:
        """Get Payload Activation Status (24.4): whether any session has the first instance.  Raises LineFailed."""
        said = (await self._command("raw", "0x06", "0x4a", "0x01")).split()
        return len(said) > 1 and bool(int(said[1], 16) & 1)

    async def free(self) -> str:
        self._ours = False
        await super().close()
        try:
            await self._command("sol", "deactivate")
        except LineFailed as error:
            if "already de-activated" not in error.message:
                raise
        return "serial over LAN deactivated"

    async def close(self) -> None:
        """Also tells the BMC: ipmitool that is ended does not, and leaves a session behind."""
        if self._ours:
            with contextlib.suppress(LineFailed):
                await self.free()
        await super().close()

    async def _command(self, *words: str) -> str:
        try:
            return await asyncio.to_thread(self._tool.run, *words, deadline_s=5.0)
        except PowerFailed as error:
            raise LineFailed(error.message) from None


def _words(said: bytes) -> str:
    lines = said.decode(errors="replace").split("\n")
    return " ".join(line.strip().removeprefix("Info: ").removeprefix("Error: ") for line in lines if line.strip())[:200]


def ssh_argv(way: Way) -> list[str]:
    """ssh to a terminal server that gives the console at once, or by the endpoint's ``command``."""
    from evenkeel.lab.power_drivers.ssh import Ssh

    target = Ssh(way).target()
    command = way.options.get("command")
    return [
        *("ssh", "-tt", "-e", "none", "-o", "LogLevel=ERROR", *target.options(), "--", target.destination),
        *([str(command)] if command else []),
    ]
