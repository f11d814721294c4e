"""`evenkeel lab ...`: the lab's service, and asking it.  The commands of a noun are in ``evenkeel.cli.lab_NOUN``.

Each such module has ``register(app: typer.Typer) -> None``, which adds its commands; it imports the rest of Evenkeel
inside its functions only.  None is listed here: all that are there are added, in the order of their names.
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

  evenkeel lab up                           start the service here, with pages on localhost
""",
)

for _name in sorted(found.name for found in pkgutil.iter_modules(cli.__path__)):
    if _name.startswith("lab_") and hasattr(_module := importlib.import_module(f"evenkeel.cli.{_name}"), "register"):
        _module.register(app)
