"""How long an agent may go on with its steps without a word of its lab, as the agent counts it.

It must end its steps before the lab gives them to somebody else, whatever the line between them does.  So its lease
does not begin when an answer comes in, which may have been long on its way, but when the question was *sent*: the lab
heard of the agent after that, and counts from then.  Knows no connection and no steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from evenkeel.lab.clocks import since_boot_ns


@dataclass
class Lease:
    """``length_ns`` None: the lab sees by itself whether this agent lives, so that it may go on for ever."""

    length_ns: int | None
    clock: Callable[[], int] = since_boot_ns
    _from_ns: int = field(init=False)
    _asked: dict[int, int] = field(default_factory=dict)  # number of a beat that was not answered -> when it was sent
    _last: int = 0

    def __post_init__(self) -> None:
        self._from_ns = self.clock()

    def begin(self, sent_ns: int, length_ns: int | None) -> None:
        """The lab welcomed the agent, whose hello was sent then."""
        self._from_ns, self.length_ns = sent_ns, length_ns
        self._asked.clear()

    def ask(self) -> int:
        """The number of a beat, which is to be sent now."""
        self._last += 1
        self._asked[self._last] = self.clock()
        return self._last

    def answered(self, number: int) -> None:
        """The lab heard that beat.  Nothing happens for one that was never sent on this line."""
        sent_ns = self._asked.pop(number, None)
        if sent_ns is not None:
            self._from_ns = sent_ns
            self._asked = {later: at for later, at in self._asked.items() if later > number}

    @property
    def over(self) -> bool:
        return self.length_ns is not None and self.clock() - self._from_ns > self.length_ns
