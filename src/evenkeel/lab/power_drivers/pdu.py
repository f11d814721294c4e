"""The outlet of a power distribution unit, by the fence agents of ClusterLabs (Debian: fence-agents).

An agent reads ``name=value`` lines on its standard input, so that no password is an argument, and answers with its
exit code: 0 done or on, 2 off (FenceAgentAPI.md).  An outlet that is on says nothing of the machine behind it.
"""

from __future__ import annotations

import contextlib
import re
import shutil

from evenkeel.errors import WrongInput
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way, program

_ACTIONS: dict[str, str] = {"on": "on", "off": "off", "cycle": "reboot"}


class Pdu:
    """``options``: ``agent`` (fence_apc), ``plug``, and what else that agent takes, by its own names."""

    actions: frozenset[Action] = frozenset({"on", "off", "cycle"})
    reads_machine = False

    def __init__(self, way: Way) -> None:
        self._agent = str(way.options.get("agent", ""))
        if not re.fullmatch(r"fence_[a-z0-9_]+", self._agent):
            raise WrongInput(
                f"{self._agent!r} is no fence agent",
                hint='options of the endpoint: {"agent": "fence_apc", "plug": "3"}',
            )
        self._way = way

    def status(self, deadline_s: float) -> Reading:
        code, said = self._run("status", deadline_s)
        if code not in (0, 2):  # an outlet that nobody reaches is no outlet that answers
            raise PowerFailed(f"PDU {self._way.address}: {self._agent} ended with {code}: {said}")
        return "on" if code == 0 else "off"

    def act(self, action: Action, deadline_s: float) -> str:
        try:
            code, said = self._run(_ACTIONS[action], deadline_s)
        except PowerFailed as error:
            if error.late and action == "cycle":
                # The agent may have been ended between off and on, and no outlet stays off because of that.
                with contextlib.suppress(PowerFailed):
                    self._run("on", deadline_s)
            raise
        if code:
            raise PowerFailed(f"PDU {self._way.address}: {self._agent} ended with {code}: {said}")
        return f"{self._agent} {_ACTIONS[action]}"

    def watts(self, deadline_s: float) -> float | None:
        return None

    def _run(self, action: str, deadline_s: float) -> tuple[int, str]:
        agent = shutil.which(self._agent) or shutil.which(self._agent, path="/usr/sbin:/sbin")
        if agent is None:
            raise PowerFailed(f"{self._agent} is not installed", hint="apt-get install fence-agents")
        more = {key: value for key, value in self._way.options.items() if key not in ("agent", "port")}
        host, port = self._way.host_and_port(0)
        lines = {"ip": host, **({"ipport": port} if port else {}), **more, "action": action}
        credentials = self._way.credentials
        lines |= {"username": credentials.user, "password": credentials.password} if credentials.user else {}
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        if any("\n" in str(value) for value in lines.values()):
            raise WrongInput(f"PDU {self._way.address}: a line break in an option")
        done = program([agent], deadline_s, f"PDU {self._way.address}", told=text, late=True)
        said = (done.stderr or done.stdout).strip().splitlines()
        return done.returncode, said[-1][:200] if said else ""
