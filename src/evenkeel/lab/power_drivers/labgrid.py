"""An outlet that labgrid has a driver for and no fence agent is: thirty more kinds, by labgrid's own Python.

labgrid is a program of others like ipmitool: it has an environment of its own, is found by its ``labgrid-client`` on
the PATH, and runs in a process of its own, which the deadline can end.  Its backends are functions ``power_set`` and
``power_get`` (labgrid/driver/power/MODEL.py); they take no password but one in a URL.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from evenkeel.errors import WrongInput
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way, off_and_on, program

#: Between off and on, as labgrid itself (NetworkPowerDriver.delay).
_REST_S = 2.0
#: Legal in the password of a URL (RFC 3986, 3.2.1), and left as they are: some backends do not undo the quoting.
_PLAIN = "!$&'()*+,;="
_ABSENT = "no-such-model"
#: Run by labgrid's Python.  What it is told is on its standard input, so that no password is an argument.
_SCRIPT = f"""
import importlib, json, sys
told = json.load(sys.stdin)
try:
    backend = importlib.import_module("labgrid.driver.power." + told["model"])
except ModuleNotFoundError as error:
    sys.exit("{_ABSENT}" if error.name == "labgrid.driver.power." + told["model"] else repr(error))
# As labgrid itself: a URL is left whole, and a backend with a port of its own gets one.
port = None if "://" in told["host"] else told["port"] or getattr(backend, "PORT", None)
try:
    if told["value"] is None:
        print({{True: "on", False: "off"}}.get(backend.power_get(told["host"], port, told["index"]), "unknown"))
    else:
        backend.power_set(told["host"], port, told["index"], told["value"])
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


class Labgrid:
    """``options``: ``model`` (as in labgrid's NetworkPowerPort), ``index``."""

    actions: frozenset[Action] = frozenset({"on", "off", "cycle"})
    reads_machine = False

    def __init__(self, way: Way) -> None:
        self._model = str(way.options.get("model", ""))
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self._model):
            raise WrongInput(
                f"{self._model!r} is no model of labgrid",
                hint='options of the endpoint: {"model": "gude", "index": "3"}',
            )
        if "://" not in way.address:
            way.host_and_port(0)
        elif not re.match(r"https?://[^/@]+(/|$)", way.address):
            raise WrongInput(
                f"{way.address!r} is no address of a PDU", hint="http(s)://HOST[:PORT]/…, with the password as a secret"
            )
        self._way = way

    def status(self, deadline_s: float) -> Reading:
        said = self._run(None, deadline_s)
        return "on" if said == "on" else "off" if said == "off" else "unknown"

    def act(self, action: Action, deadline_s: float) -> str:
        if action == "cycle":
            return off_and_on(self, f"PDU {self._way.address}", deadline_s, rest_s=_REST_S)
        self._run(action == "on", deadline_s)
        return f"labgrid {self._model} {action}"

    def watts(self, deadline_s: float) -> float | None:
        return None

    def _run(self, value: bool | None, deadline_s: float) -> str:
        """Set, or read with None.  Raises PowerFailed."""
        what, secret = f"PDU {self._way.address}", self._way.credentials
        client = shutil.which("labgrid-client")
        if client is None:
            raise PowerFailed("labgrid is not installed", hint="pipx install labgrid")
        host, port = self._way.address, 0
        if "://" not in host:
            host, port = self._way.host_and_port(0)
            host = f"[{host}]" if ":" in host else host
            if secret.user or secret.password:
                raise PowerFailed(f"{what}: labgrid takes a password only for an address that is a URL")
        elif secret.user or secret.password:
            parts = urlsplit(host)
            who = f"{quote(secret.user, safe=_PLAIN)}:{quote(secret.password, safe=_PLAIN)}"
            host = urlunsplit(parts._replace(netloc=f"{who}@{parts.netloc}"))
        told = {"model": self._model, "host": host, "port": port, "value": value}
        told |= {"index": str(self._way.options.get("index", "1"))}
        try:
            argv = [str(Path(client).resolve().with_name("python3")), "-I", "-c", _SCRIPT]
            done = program(argv, deadline_s, what, told=json.dumps(told), late=value is not None)
        except OSError as error:
            raise PowerFailed(f"labgrid beside {client} does not start: {error.strerror}") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            why = lines[-1] if lines else f"ended with {done.returncode}"
            if why == _ABSENT:
                raise PowerFailed(
                    f"labgrid has no model {self._model!r}", hint="its documentation lists them: NetworkPowerPort"
                )
            for word in {secret.password, quote(secret.password, safe=_PLAIN)} - {""}:
                why = why.replace(word, "…")  # requests tells the whole URL
            raise PowerFailed(f"{what}: labgrid {self._model}: {why[:200]}")
        return done.stdout.strip()
