"""What a watcher says: one typed notice an event, and how it is written as a line of a log or of JSON.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from evenkeel.documents.findings import Check

Kind = Literal[
    "watching",  # connected, and looked at everything
    "drifted",
    "differs",
    "gone again",
    "not checked",
    "repaired",
    "not repaired",
    "lost",  # the connection
    "back",
]
#: Priorities of syslog(3): 3 error, 4 warning, 5 notice, 6 information.
_PRIORITY: dict[Kind, int] = {"lost": 3, "drifted": 4, "differs": 4, "not repaired": 4, "watching": 6}
_NOTICE = 5


@dataclass(frozen=True)
class Notice:
    """``at``: seconds since 1970, by the clock of the host once it has told its time.

    ``cause``: the event that led to it, or "sweep"; ``delay_s``: from the host's noticing that event to the end of the
    look that proved the drift, by the host's clock; None without an event.
    """

    kind: Kind
    host: str
    at: float
    text: str
    check: Check | None = None
    cause: str = ""
    delay_s: float | None = None

    @property
    def priority(self) -> int:
        return _PRIORITY.get(self.kind, _NOTICE)

    def line(self) -> str:
        """One line, without its time."""
        name = f" {self.check.id}" if self.check else ""
        after = f", {self.delay_s:.2f} s" if self.delay_s is not None else ""
        cause = f" ({self.cause}{after})" if self.cause else ""
        return " ".join(f"{self.host}: {self.kind}{name}: {self.text}{cause}".split())

    def log_line(self) -> str:
        """For the journal of systemd, which takes the priority from the front (sd-daemon(3))."""
        return f"<{self.priority}>{self.line()}"

    def data(self) -> dict[str, Any]:
        """For one line of JSON."""
        time = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {
            "kind": self.kind,
            "host": self.host,
            "at": time,
            "text": self.text,
            "cause": self.cause or None,
            "delay_s": self.delay_s,
            "check": self.check.model_dump(mode="json") if self.check else None,
        }


def describe(event: dict[str, Any]) -> str:
    """An event of the probe in words."""
    match event["kind"]:
        case "cpu":
            return f"CPU {event['cpu']} went {'online' if event['online'] else 'offline'}"
        case "device":
            return f"device {event['name']}: {event['action']}"
        case "link":
            return f"link {event['name']} {'is gone' if event['gone'] else 'is up' if event['up'] else 'is down'}"
        case "partition":
            return f"partition reads {event['state'] or 'nothing, it is gone'}"
        case "guest":
            return f"{event['what']} of {event['name']} changed"
        case "interrupts":
            return "interrupts: " + ", ".join(sorted({row["action"] or row["label"] for row in event["rows"]}))
        case "owner":
            return f"{event['name']} {'started' if event['running'] else 'ended'}"
        case "canary":
            return f"canary: {event['message'] or 'every CPU answers'}"
        case "profile":
            return f"TuneD's profile is {event['profile']}"
        case "lost":
            return f"so many {event['source']} that the kernel dropped some"
    return str(event["kind"])
