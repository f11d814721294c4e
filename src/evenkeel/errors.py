"""The one error class tree of Evenkeel: what happened, where, and what to do next.

Every mistake of a user or of a machine that we can name is raised as an :class:`EvenkeelError`; the command line
prints it and exits with ``exit_code``.  Anything else that escapes is a defect of ours and keeps its traceback.
This module must not print and must not import anything of Evenkeel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EXIT_DONE = 0
EXIT_NOT_AS_WANTED = 1
EXIT_WRONG_INPUT = 2
EXIT_UNREACHABLE = 3
EXIT_ROLLED_BACK = 4


@dataclass(frozen=True)
class Where:
    """A place in a file.  ``line`` and ``column`` count from 1; None where they are not known."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class EvenkeelError(Exception):
    """Base of all errors that a user may see.  ``message``: what happened; ``hint``: the cure."""

    exit_code = EXIT_NOT_AS_WANTED

    def __init__(self, message: str, *, where: Where | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head} (hint: {self.hint})" if self.hint else head


class NotAsWanted(EvenkeelError):
    """The command worked, but the answer is no: a check failed, a goal is missed.  Exit code 1."""


class WrongInput(EvenkeelError):
    """The user's file, argument or combination cannot be used.  Exit code 2.  Nothing was changed."""

    exit_code = EXIT_WRONG_INPUT


class Unreachable(EvenkeelError):
    """A machine does not answer, or answers without what we need to work on it.  Exit code 3."""

    exit_code = EXIT_UNREACHABLE


class RolledBack(EvenkeelError):
    """Applying failed half-way and the old state was restored.  Exit code 4.

    ``findings``: what failed, as :class:`evenkeel.documents.findings.Check`.
    """

    exit_code = EXIT_ROLLED_BACK
    findings: tuple[Any, ...] = ()
