"""Options that a verb would take and not heed, because of another one: they are refused, with what to do instead.

Whoever writes an option believes that it is done.  Must not know the options of any verb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import typer


def given_options(context: typer.Context) -> set[str]:
    """Options that were written, also where with the value that they have by default."""
    return {
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }


def refuse(given: Iterable[str], why: str, cures: Mapping[str, str]) -> None:
    """Raises WrongInput for what was given and would silently do nothing.

    ``cures``: option -> what to do in its place, or to have it.
    """
    from evenkeel.errors import WrongInput

    wrong = [option for option in cures if option in given]
    if wrong:
        raise WrongInput(f"{why} {', '.join(wrong)}", hint="; ".join(dict.fromkeys(cures[one] for one in wrong)))
