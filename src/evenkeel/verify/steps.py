"""One progress bar over many operations of known length.  Must not sleep or look at a clock."""

from __future__ import annotations

from evenkeel.machines.protocol import OnProgress


class Steps:
    """One bar for many operations: seconds as planned, so that the rate tells when it is done."""

    def __init__(self, total: float, on_progress: OnProgress | None) -> None:
        self._total = total
        self._done = 0.0
        self._length = 0.0
        self._tell = on_progress

    def begin(self, seconds: float, what: str) -> OnProgress:
        self._done += self._length
        self._length = seconds
        self._say(self._done, what)

        def inner(done: int, total: int, doing: str) -> None:
            self._say(self._done + seconds * done / (total or 1), f"{what}: {doing}")

        return inner

    def end(self) -> None:
        self._say(self._total, "")

    def _say(self, done: float, what: str) -> None:
        if self._tell:
            self._tell(int(10 * min(done, self._total)), int(10 * self._total), what)
