"""What the lab and its agents say to each other: one JSON object a message, a line each on a socket.

The rules, in short (docs/explanation/lab.md says why).  An agent's name is its lease.  It says hello with what it runs
and what it has finished; the lab answers with what may go on.  A start is on the lab's disk before the agent is told.
An agent keeps a result on its disk until the lab has acknowledged it.  ``attempt`` numbers are never used twice, and
serve as fencing: what is not running under that number on that agent is refused.
Knows no database and no processes.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError

#: A start carries a definition with its scripts; a result carries a document.
MAX_MESSAGE = 16 << 20
#: How often an agent says that it is there, and after how long without a word it has lost its lease.
BEAT_NS = 10 * 10**9
LEASE_NS = 45 * 10**9
#: How long the lab waits for its agents after it was restarted; LOCAL: for one on its machine whose process has ended.
LOCAL_GRACE_NS = 3 * 10**9
REMOTE_GRACE_NS = 60 * 10**9


class ProtocolError(EvenkeelError):
    """The other side says what it cannot say: another version, or no agent at all."""


# -- from an agent ------------------------------------------------------------------------------------------------


class Hello(Model):
    """``identity``: of the agent's folder, so that a second agent with the same name is told from the same one again.

    ``running``, ``finished``: attempts whose processes live, and whose results wait to be taken."""

    type: Literal["hello"] = "hello"
    version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    identity: str
    kind: str = "process"
    slots: int = Field(ge=1, le=100_000)
    labels: dict[str, list[str]] = {}
    running: tuple[int, ...] = ()
    finished: tuple[int, ...] = ()


class Log(Model):
    """Bytes of the log of an attempt, from ``offset`` on; as text of Latin-1, so that every byte survives JSON."""

    type: Literal["log"] = "log"
    attempt: int
    offset: int = Field(ge=0)
    data: str


class Ended(Model):
    """``cause``: why it did not pass (documents.result.Cause, or a sentence).  ``result``: the whole document.

    ``ago_ns``: for how long it had waited at its agent when that said it; no date, as clocks of two machines differ."""

    type: Literal["ended"] = "ended"
    attempt: int
    state: Literal["passed", "failed", "cancelled", "timed-out", "lost"]
    exit: int | None = None
    cause: str = ""
    output: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    ago_ns: int = Field(default=0, ge=0)


class Beat(Model):
    """``number``: grows with each on a line."""

    type: Literal["beat"] = "beat"
    number: int = 0


class Bye(Model):
    """It ends for good and runs nothing."""

    type: Literal["bye"] = "bye"


# -- from the lab -------------------------------------------------------------------------------------------------


class Welcome(Model):
    """``stop``: attempts that are not this agent's any more.  ``logs``: how many bytes of which log are here.

    ``lease_ns``: after so long without a word the agent ends its steps, and the lab gives them to others a little
    later.  None: it need not, because the lab sees by itself whether it lives."""

    type: Literal["welcome"] = "welcome"
    fencing: int
    beat_ns: int = BEAT_NS
    lease_ns: int | None = LEASE_NS
    stop: tuple[int, ...] = ()
    logs: dict[int, int] = {}


class Refused(Model):
    """``again``: whether it is worth another try later."""

    type: Literal["refused"] = "refused"
    why: str
    again: bool = False


class Start(Model):
    """``use``: one step of a resolved graph (lab.step.Use).  ``machine``: what it may know of its own."""

    type: Literal["start"] = "start"
    attempt: int
    submission: int
    step: str
    use: dict[str, Any]
    timeout_ns: int | None = None
    machine: dict[str, str] | None = None


class Stop(Model):
    type: Literal["stop"] = "stop"
    attempt: int
    state: Literal["cancelled", "timed-out"] = "cancelled"
    cause: str = ""


class Taken(Model):
    """The result of an attempt is on disk here, or refused for good: the agent may forget it."""

    type: Literal["taken"] = "taken"
    attempt: int
    accepted: bool = True


class LogTaken(Model):
    type: Literal["log-taken"] = "log-taken"
    attempt: int
    size: int


class Alive(Model):
    """Answers a beat: the lease is good for another ``lease_ns`` since that was sent."""

    type: Literal["alive"] = "alive"
    number: int = 0


FromAgent = Hello | Log | Ended | Beat | Bye
FromLab = Welcome | Refused | Start | Stop | Taken | LogTaken | Alive
_from_agent: TypeAdapter[FromAgent] = TypeAdapter(Annotated[FromAgent, Field(discriminator="type")])
_from_lab: TypeAdapter[FromLab] = TypeAdapter(Annotated[FromLab, Field(discriminator="type")])


def encode(message: FromAgent | FromLab) -> bytes:
    """One line."""
    return json.dumps(message.model_dump(mode="json"), separators=(",", ":")).encode() + b"\n"


def from_agent(line: bytes | str) -> FromAgent:
    """Raises ProtocolError."""
    try:
        return _from_agent.validate_json(line)
    except ValidationError as error:
        raise ProtocolError(_first(error)) from None


def from_lab(line: bytes | str) -> FromLab:
    """Raises ProtocolError."""
    try:
        return _from_lab.validate_json(line)
    except ValidationError as error:
        raise ProtocolError(_first(error), hint="is the agent of the same release as the lab?") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"not a message of this protocol: {'.'.join(map(str, first['loc']))}: {first['msg']}"
