"""The controlling side of the conversation with a probe, over the pipes of any child process.

Knows JSON lines and time-outs; knows neither ssh nor what an operation does.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Self

from evenkeel.errors import Unreachable
from evenkeel.machines.protocol import OnProgress, ProbeError
from evenkeel.machines.zipapp import probe_zipapp

#: What the other side says on stderr -> the cure.
_CURES = (
    ("python3: not found", "the machine needs Python 3.9 or newer as python3"),
    ("python3: command not found", "the machine needs Python 3.9 or newer as python3"),
    ("Python 3.9", "the machine needs Python 3.9 or newer as python3"),
    ("Permission denied", "does your ssh key open this account? try: ssh -o BatchMode=yes USER@HOST true"),
    ("IDENTIFICATION HAS CHANGED", "if the machine was installed anew: ssh-keygen -R HOST, then log in once by hand"),
    ("Host key verification failed", "log in once with ssh by hand and check the host key"),
    ("Connection refused", "is it up, and does sshd run there?"),
    ("Could not resolve hostname", "is the name right? try: getent hosts HOST"),
)


class ProcessProbe:
    """A probe at the other end of the pipes of ``argv``.  Implements the protocol ``Probe``."""

    def __init__(self, argv: Sequence[str], *, machine: str, start_timeout_s: float = 60.0) -> None:
        """Start ``argv``, send the zipapp, wait for its hello.  Raises Unreachable with what stderr said."""
        self._machine = machine
        self._number = 0
        self._buffer = b""
        try:
            # A session of its own: Ctrl-C in the terminal must not kill the probe in the middle of a write;
            # closing the pipe ends it at the next request.
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise Unreachable(f"{machine}: cannot start {argv[0]}: {error.strerror}") from None
        assert self._process.stdin and self._process.stdout and self._process.stderr
        os.set_blocking(self._process.stderr.fileno(), False)
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            self.greeting: dict[str, Any] = self._start(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def _start(self, timeout_s: float) -> dict[str, Any]:
        archive = probe_zipapp()
        self._send(b"%d\n" % len(archive) + archive, "hello", time.monotonic() + timeout_s, timeout_s)
        try:
            return dict(self.call("hello", timeout_s=timeout_s))
        except ProbeError:
            raise self._lost("did not start the probe") from None

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        assert self._process.stdin
        if self._process.stdin.closed:
            raise Unreachable(f"{self._machine}: the conversation ended before {op!r}")
        self._number += 1
        request = {"id": self._number, "op": op, "args": args}
        deadline = time.monotonic() + timeout_s
        self._send(json.dumps(request).encode() + b"\n", op, deadline, timeout_s)
        while True:
            answer = self._read_answer(op, deadline, timeout_s)
            if answer.get("id") != self._number:
                continue  # an answer to a request that timed out before
            if "progress" in answer:
                deadline = time.monotonic() + timeout_s
                if on_progress:
                    on_progress(*answer["progress"])
                continue
            if "error" in answer:
                raise ProbeError(self._machine, op, answer["error"])
            return answer["ok"]

    def _send(self, data: bytes, op: str, deadline: float, timeout_s: float) -> None:
        """Write all of it.  The other side may not read (no probe, or hung), or talk meanwhile (no probe)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        left = memoryview(data)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(stdin, selectors.EVENT_WRITE)
                selector.register(stdout, selectors.EVENT_READ)
                while left:
                    ready = selector.select(max(0.0, deadline - time.monotonic()))
                    if not ready:
                        raise self._silent(op, timeout_s)
                    for key, _ in ready:
                        if key.fileobj is stdin:
                            left = left[os.write(stdin.fileno(), left) :]
                        elif not (chunk := os.read(stdout.fileno(), 1 << 20)):
                            raise self._lost(f"went away before {op!r}")
                        else:
                            self._buffer += chunk
                            if op == "hello" and b"\n" in self._buffer:
                                self._parse(self._take_line())  # it spoke first, so it is no probe
        except OSError:
            raise self._lost(f"went away before {op!r}") from None
        finally:
            if left and len(left) < len(data):
                stdin.close()  # interrupted in the middle: another request would be glued to this half

    def _read_answer(self, op: str, deadline: float, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._silent(op, timeout_s)
                chunk = os.read(self._process.stdout.fileno(), 1 << 20)
                if not chunk:
                    raise self._lost(f"connection lost during {op!r}")
                self._buffer += chunk
        return self._parse(self._take_line())

    def _take_line(self) -> bytes:
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _parse(self, line: bytes) -> dict[str, Any]:
        answer: Any = None
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
        if not isinstance(answer, dict) or "id" not in answer:
            raise self._lost(f"answered {line[:80].decode(errors='replace')!r}, which is no probe")
        return answer

    def _silent(self, op: str, timeout_s: float) -> Unreachable:
        return Unreachable(
            f"{self._machine}: no answer to {op!r} within {timeout_s:.0f} s",
            hint="is the machine overloaded or hung? look at its console",
        )

    def _lost(self, what: str) -> Unreachable:
        """The error for a conversation that ended; says why as far as the other side told."""
        assert self._process.stderr
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)  # let it finish saying why
        text = b"" if self._process.stderr.closed else self._process.stderr.read() or b""
        said = text.decode(errors="replace").strip().splitlines()
        hint = next((cure for sign, cure in _CURES if any(sign in line for line in said)), None)
        return Unreachable(f"{self._machine}: {what}" + (f": {said[-1].strip()}" if said else ""), hint=hint)

    def close(self) -> None:
        """End the conversation: close the pipe, wait, and only then insist."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            if stream and not stream.closed:
                with contextlib.suppress(OSError):  # the other side may be gone already
                    stream.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr:
            process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
