"""`evenkeel lab ...`: the lab's service, and asking it.  The commands of a noun are in ``evenkeel.cli.lab_NOUN``.

Each such module has ``register(app: typer.Typer) -> None``, which adds its commands; it imports the rest of Evenkeel
inside its functions only.  All that are there are added; help shows them as a person meets them.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer

from evenkeel import cli

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""A pool of machines and a queue of steps, for one person or a team.

  evenkeel lab up                                             start the service here, with pages on localhost
  evenkeel lab reserve 'mem>=64GiB' --for 4h --reason WHY     a machine for yourself
  evenkeel lab submit graph.yaml                              steps into the queue
""",
)
#: The service, machines, the queue, what is at hand of both, people, and what keeps it; others come behind.
ORDER = (
    *("up", "demo", "down", "status", "open"),
    *("machines", "search", "reserve", "reservations", "waiting", "calendar", "extend", "release", "handover", "use"),
    *(
        "submit",
        "submissions",
        "queue",
        "show",
        "log",
        "cancel",
        "retry",
        "eta",
        "urgent",
        "statistics",
        "run",
        "steps",
        "compare",
    ),
    *("agents", "drain", "resume", "agent", "power", "console", "consoles", "health", "energy", "budget"),
    *("login", "logout", "me", "people", "program", "events", "backup", "restore"),
)

for _name in sorted(found.name for found in pkgutil.iter_modules(cli.__path__)):
    if _name.startswith("lab_") and hasattr(_module := importlib.import_module(f"evenkeel.cli.{_name}"), "register"):
        _module.register(app)

app.registered_commands.sort(key=lambda one: ORDER.index(one.name) if one.name in ORDER else len(ORDER))
