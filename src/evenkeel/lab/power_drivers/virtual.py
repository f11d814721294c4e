"""A virtual host of Evenkeel: its QEMU is the chassis, so what it says is the truth."""

from __future__ import annotations

import contextlib
import threading
import time

from evenkeel.errors import EvenkeelError, Unreachable
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way
from evenkeel.machines.virtual import lifecycle, qemu


class Virtual:
    """``address``: the name of the virtual host, with or without ``virtual:``."""

    actions: frozenset[Action] = frozenset({"on", "off", "reset", "cycle"})
    reads_machine = True

    def __init__(self, way: Way) -> None:
        self._name = way.address.removeprefix("virtual:")

    def status(self, deadline_s: float) -> Reading:
        try:
            lifecycle.read_host(self._name)
            return "on" if lifecycle.read_run(self._name) is not None else "off"
        except EvenkeelError as error:
            raise PowerFailed(error.message) from None

    def act(self, action: Action, deadline_s: float) -> str:
        try:
            if action == "reset":
                with qemu.Qmp(lifecycle.folder_of(self._name), timeout_s=deadline_s) as qmp:
                    qmp.call("system_reset")
                return "QEMU system_reset"
            if action in ("off", "cycle"):
                lifecycle.power_cut(self._name)
            if action in ("on", "cycle"):
                self._start(deadline_s)
        except Unreachable as error:
            raise PowerFailed(error.message, silent=True) from None
        except EvenkeelError as error:
            raise PowerFailed(error.message, hint=error.hint) from None
        return {"off": "QEMU ended", "on": "QEMU started"}.get(action, "QEMU ended and started")

    def watts(self, deadline_s: float) -> float | None:
        return None

    def _start(self, deadline_s: float) -> None:
        """Return when QEMU runs; :func:`lifecycle.start` waits on for the boot, and tries a second time."""
        failed: list[EvenkeelError] = []

        def start() -> None:
            try:
                lifecycle.start(self._name)
            except EvenkeelError as error:
                failed.append(error)

        threading.Thread(target=start, name=f"start of {self._name}", daemon=True).start()
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            with contextlib.suppress(EvenkeelError):
                if lifecycle.read_run(self._name) is not None:
                    return
            if failed:
                raise failed[0]
            time.sleep(0.1)
        raise PowerFailed(f"virtual host {self._name}: QEMU did not start within {deadline_s:g} s")
