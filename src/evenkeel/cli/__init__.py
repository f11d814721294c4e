"""The command line, ``evenkeel VERB``: one module a verb, thin: parse, call, print.

This module holds only the entry point.  It must import nothing heavy: ``evenkeel --version`` answers before typer,
pydantic or rich are loaded (a test holds this).  The verbs are listed in :mod:`evenkeel.cli.root`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.  ``argv``: the arguments without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["--version"], ["-V"]):
        from evenkeel import __version__

        print(f"evenkeel {__version__}")
        return 0
    try:
        from evenkeel.cli.root import run

        return run(arguments)
    except KeyboardInterrupt:
        # Here and not in root: Ctrl-C may come while the imports run.
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as a shell reports it
