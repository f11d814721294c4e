"""`evenkeel lab console MACHINE`: a serial console in this terminal, and what it printed before.

Must leave the terminal as it found it, however it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from evenkeel.lab.client import Client

_KEYS = """Escapes, after a return:
  ~.  leave          ~a  ask to write      ~g  hand over to who asked, or stop writing
  ~?  this           ~k  go on writing     ~s  tell the host's shell the size of this window
  ~r  reset a stuck line                   ~~  a tilde
"""


def register(app: typer.Typer) -> None:
    app.command(name="console")(console)
    app.command(name="consoles")(consoles)


def consoles(lab: At = None, as_json: Json = False) -> int:
    """Say how all consoles stand.  Exit code 1: one is down.

    evenkeel lab consoles
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.pages.words import moment

    with connect(lab) as asked:
        found = asked.get("/consoles")
    if as_json:
        output.emit_json(found)
    elif not found:
        output.note("no machine has a console; `evenkeel lab endpoint set MACHINE console DRIVER ADDRESS` gives it one")
    else:
        rows = [
            (
                one["machine"],
                one["line"],
                one["why"],
                one["writer"] or "",
                str(one["freed"]),
                moment(one["last_byte_ns"]),
            )
            for one in found
        ]
        heads = ("machine", "line", "why", "writer", "freed", "last byte (UTC)")
        output.out().print(output.table(heads, rows))
    return int(any(one["line"] != "up" for one in found))


def console(
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="Name of a machine of the lab.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="Never write, also when nobody else does.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Only end whatever session holds the line.")] = False,
    log: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only print what it printed for so long: 2h.", show_default=False)
    ] = None,
    lab: At = None,
    as_json: Json = False,
) -> int:
    """Use the serial console of a machine.  Many can read; one writes, and hands over.  ~? shows the keys.

    evenkeel lab console host1
    evenkeel lab console host1 --log 2h
    evenkeel lab console host1 --reset
    """
    import sys
    import time

    from evenkeel.cli import output
    from evenkeel.documents.quantity import parse_duration
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        if reset:
            found = asked.post(f"/machines/{machine}/console/reset")
            output.emit_json(found) if as_json else output.note(f"{machine}: its line is being opened anew")
            return 0
        if log is not None:
            try:
                since = time.time_ns() - parse_duration(log)
            except ValueError as error:
                raise WrongInput(str(error)) from None
            found = asked.ask("GET", f"/machines/{machine}/console/text", parameters={"since_ns": since}).text
            output.emit_json({"text": found}) if as_json else sys.stdout.write(found)
            return 0
        found = asked.get(f"/machines/{machine}/console")  # that there is none is told before anything else
        if as_json:
            output.emit_json(found)
            return 0
        if not sys.stdin.isatty():
            raise WrongInput("a console needs a terminal", hint="--log 2h prints what it printed")
        return _attach(asked, machine, read_only)


def _attach(asked: Client, machine: str, read_only: bool) -> int:
    import asyncio
    import sys
    import termios
    import tty

    output_note(f"console of {machine}; ~. leaves, ~? shows the keys")
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        return asyncio.run(_talk(asked, machine, read_only, keyboard))
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stderr.write("\n")


def output_note(text: str) -> None:
    """A line of ours between those of the console; the terminal is raw, so it needs its own return."""
    import sys

    sys.stderr.write("".join(f"[{line}]\r\n" for line in text.splitlines()))
    sys.stderr.flush()


class Keys:
    """What was typed, cut into bytes for the console and our own commands after ``~`` at the begin of a line."""

    def __init__(self) -> None:
        self._begin = True
        self._tilde = False

    def typed(self, data: bytes) -> list[bytes | str]:
        """In order: bytes to send, and one letter for each escape."""
        found: list[bytes | str] = []
        plain = bytearray()
        for byte in data:
            letter = bytes((byte,))
            if self._tilde:
                self._tilde = False
                if letter in (b".", b"?", b"a", b"g", b"k", b"r", b"s"):
                    if plain:
                        found.append(bytes(plain))
                        plain.clear()
                    found.append(letter.decode())
                    self._begin = True
                    continue
                plain += letter if letter == b"~" else b"~" + letter
            elif self._begin and letter == b"~":
                self._tilde = True
                continue
            else:
                plain += letter
            self._begin = letter in (b"\r", b"\n")
        return [*found, bytes(plain)] if plain else found


async def _talk(asked: Client, machine: str, read_only: bool, keyboard: int) -> int:
    import asyncio
    import os
    import signal

    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    loop.add_reader(keyboard, lambda: typed.put_nowait(os.read(keyboard, 4096)))
    try:
        async with asked.socket(f"/machines/{machine}/console/attach?write={str(not read_only).lower()}") as line:
            loop.add_signal_handler(signal.SIGWINCH, lambda: asyncio.ensure_future(_size(line)))
            await _size(line)
            works = [
                asyncio.ensure_future(_show(line)),
                asyncio.ensure_future(_send(asked, machine, line, typed)),
            ]
            done, waiting = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in waiting:
                work.cancel()
            return max(work.result() for work in done)
    finally:
        loop.remove_reader(keyboard)
        loop.remove_signal_handler(signal.SIGWINCH)


async def _size(line: ClientConnection) -> None:
    import json
    import os

    columns, rows = os.get_terminal_size(2)
    await line.send(json.dumps({"do": "resize", "columns": columns, "rows": rows}))


async def _show(line: ClientConnection) -> int:
    """What the console prints to stdout, what the lab says to stderr; ends with the session."""
    import json
    import os

    from websockets.exceptions import ConnectionClosed

    state: dict[str, Any] = {}
    try:
        async for message in line:
            if isinstance(message, bytes):
                rest = memoryview(message)
                while rest:
                    rest = rest[os.write(1, rest) :]
                continue
            told = json.loads(message)
            if told["type"] == "state":
                _tell(state, told)
                state = told
            elif told["type"] == "asked":
                output_note(f"{told['by']} wants to write: ~g hands over, ~k goes on")
            elif told["type"] == "refused":
                output_note(told["why"])
            elif told["type"] == "error":
                output_note("\n".join(filter(None, (told["detail"], told.get("hint")))))
                return 1
            elif told["type"] == "gone":
                output_note(told.get("why", "the lab ended the session"))
                return 3
    except ConnectionClosed:
        pass
    output_note("the lab ended the session")
    return 3


def _tell(before: dict[str, Any], now: dict[str, Any]) -> None:
    if now["line"] != before.get("line") or (now["why"] and now["why"] != before.get("why")):
        output_note(f"line is {now['line']}" + (f": {now['why']}" if now["why"] else ""))
    if now["you_write"] != before.get("you_write") or now["writer"] != before.get("writer"):
        if now["you_write"]:
            output_note("you write")
        elif now["writer"]:
            output_note(f"{now['writer']} writes, you read; ~a asks")
        else:
            output_note("you read; ~a asks to write")


async def _send(asked: Client, machine: str, line: ClientConnection, typed: Any) -> int:
    """What is typed, until ``~.``"""
    import asyncio
    import json
    import os

    from evenkeel.errors import EvenkeelError

    keys = Keys()
    orders = {"a": "ask", "g": "give", "k": "keep"}
    while data := await typed.get():
        for part in keys.typed(data):
            if isinstance(part, bytes):
                await line.send(part)
            elif part == ".":
                return 0
            elif part == "?":
                output_note(_KEYS)
            elif part == "s":
                columns, rows = os.get_terminal_size(2)
                await line.send(f"stty columns {columns} rows {rows}\r".encode())
            elif part == "r":
                try:
                    await asyncio.to_thread(asked.post, f"/machines/{machine}/console/reset")
                except EvenkeelError as error:
                    output_note(str(error))
            else:
                await line.send(json.dumps({"do": orders[part]}))
    return 0
