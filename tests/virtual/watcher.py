"""A watcher beside a test on a tuned virtual host: what it said, and waiting for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from tests.virtual.tuned import TunedHost

from evenkeel.machines.virtual import VirtualMachine
from evenkeel.watch.host import Watch, Wish
from evenkeel.watch.notice import Notice

#: An emulated host on a busy machine; how long it took is in the notices and is not judged here.
PATIENCE_S = 180.0


class Watcher:
    """A watcher in a thread of its own, and all that it said."""

    def __init__(self, host: TunedHost, *, repair: bool) -> None:
        self.said: list[Notice] = []
        self.stop = threading.Event()
        self.watch = Watch(
            host=host.host,
            plan_sha256=host.plan.sha256(),
            machine=VirtualMachine(host.machine.name),
            wish=Wish(repair=repair, sweep_s=20.0),
            say=self.said.append,
            stop=self.stop,
        )
        self.thread = threading.Thread(target=self.watch.run, daemon=True)

    def wait(self, kind: str, check: str = "", *, cause: str = "", since: int = 0) -> Notice:
        """The first notice of this kind, about this check, with these words in its cause."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for notice in self.said[since:]:
                name = notice.check.id if notice.check else ""
                if notice.kind == kind and (not check or name == check) and cause in notice.cause:
                    return notice
            assert self.thread.is_alive(), "\n".join(notice.line() for notice in self.said)
            time.sleep(0.1)
        raise AssertionError(f"no {kind} {check} ({cause}) in:\n" + "\n".join(notice.line() for notice in self.said))

    def wait_until_well(self) -> None:
        """Until no check fails any more."""
        deadline = time.monotonic() + PATIENCE_S
        while self.watch.failing:
            assert time.monotonic() < deadline, "\n".join(notice.line() for notice in self.said)
            time.sleep(0.2)

    def since(self) -> int:
        return len(self.said)


@contextlib.contextmanager
def watching(host: TunedHost, *, repair: bool) -> Iterator[Watcher]:
    """A watcher that has looked at everything and found nothing wrong."""
    watcher = Watcher(host, repair=repair)
    watcher.thread.start()
    try:
        watcher.wait("watching")
        watcher.wait_until_well()
        yield watcher
    finally:
        watcher.stop.set()
        watcher.thread.join(60)
