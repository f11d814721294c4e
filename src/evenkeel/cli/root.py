"""The root command: the table of verbs, loading one verb at a time, and turning every error into text and exit code.

A verb is the module ``evenkeel.cli.VERB``.  It has ``register(app: typer.Typer) -> None``, which adds one command
named like the verb; a verb with commands of its own has ``app: typer.Typer`` instead.  It may return an exit code or
raise ``typer.Exit(code)`` after it has printed its result; everything else it raises as an EvenkeelError.
A paragraph of its docstring that is indented, or whose lines start with ``evenkeel``, is shown as it stands: that is
where the example goes.

Importing this module must not import any verb, pydantic or rich: shell completion and ``--help`` pay for it.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from evenkeel.errors import EXIT_WRONG_INPUT, EvenkeelError, WrongInput

EXIT_DEFECT = 70  # EX_SOFTWARE of sysexits.h
EXIT_READER_GONE = 141  # 128 + SIGPIPE, as a shell reports it
COMPLETE_VARIABLE = "_EVENKEEL_COMPLETE"

#: Verb -> one line of help, in the order of the river; `evenkeel --help` shows them so.
VERBS = {
    "facts": "Read what a machine is and how it is set now",
    "doctor": "Say what is wrong with a host, without any site file",
    "plan": "Work out every setting from a site file and facts",
    "place": "Say on which host a guest goes, or why it fits nowhere",
    "capacity": "Say how many more guests fit, and what runs out first",
    "rules": "List and search the rules that a plan is made of",
    "explain": "Say why a plan sets one value: rule, inputs, source, risk",
    "apply": "Write a plan to its hosts, with a journal",
    "rollback": "Undo on a host what apply wrote, byte for byte",
    "status": "Say how the hosts of a site stand against their plan",
    "verify": "Compare every thread, page and interrupt with the plan",
    "watch": "Say at once what drifts on the hosts, and put it back",
    "lint": "Check guests for SAP HANA, or the places that Nova gave",
    "measure": "Take latency histograms and count disturbances",
    "trace": "Ask the running kernel: how often, who, how long, where",
    "spikes": "Say why samples in a guest were late, and what allowed it",
    "report": "Write one self-contained HTML report",
    "demo": "Run the whole river on a virtual host",
    "schema": "Print the JSON Schema of a document",
    "lab": "Run a pool of machines and a queue of steps for a team",
    "virtual": "Create, start and stop virtual hosts",
}

_HELP = """Run latency-critical virtual machines on Linux, and prove that they keep their deadline.

  evenkeel facts                          what is this machine?
  evenkeel plan site.yaml -o plan.json    what would be set, and why?
  evenkeel apply plan.json                set it

Every verb has --help with an example. Exit codes: 0 done, 1 not as wanted, 2 wrong input, 3 machine not reachable,
4 failed half-way and rolled back.
"""


class _River(TyperGroup):
    """A group whose commands are stand-ins (name and help) until one of them is really run."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update(
            (verb, TyperCommand(verb, help=text, rich_markup_mode=None)) for verb, text in VERBS.items()
        )

    # The context and command classes are typer's own and not exported, hence Any.
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name and command else command, rest


def _load(verb: str) -> Any:
    """Import the module of a verb and return its command."""
    module = importlib.import_module(f"evenkeel.cli.{verb}")
    if hasattr(module, "app"):
        command: Any = typer.main.get_group(module.app)
        command.name = verb
        command.help = command.help or VERBS[verb]
    else:
        app = typer.Typer(rich_markup_mode=None)
        module.register(app)
        command = typer.main.get_group(app).commands[verb]
    _settle(command)
    return command


def _settle(command: Any) -> None:
    """Give a command and those below it the look of this program."""
    command.rich_markup_mode = None
    command.context_settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    command.help = _keep_indented(command.help)
    command.epilog = _keep_indented(command.epilog)
    for below in getattr(command, "commands", {}).values():
        _settle(below)


def _keep_indented(text: str | None) -> str | None:
    r"""Mark paragraphs that must not be wrapped anew with ``\b``: indented ones, and examples (``evenkeel ...``)."""
    if text is None:
        return None
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if lines and all(line.startswith("evenkeel ") for line in lines):
            lines = ["  " + line for line in lines]
        if any(line.startswith(" ") for line in lines) and lines[0] != "\b":
            lines.insert(0, "\b")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def root_command() -> Any:
    """The whole command line, no verb loaded yet."""
    app = typer.Typer(cls=_River, name="evenkeel", help=_HELP, rich_markup_mode=None)

    @app.callback()
    def root(
        version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and leave.")] = False,
    ) -> None:
        if version:
            raise typer.Exit(_print_version())

    command: Any = typer.main.get_command(app)
    command.context_settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    command.help = _keep_indented(command.help)
    return command


def _print_version() -> int:
    from evenkeel import __version__

    print(f"evenkeel {__version__}")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run one command.  Every way it can end but Ctrl-C becomes an exit code; errors are told on stderr.

    With ``--json`` an error that comes before any result is also one JSON object on stdout: ``{"error": {...}}``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a sign gets its number, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        return _usage_error(error, arguments)
    except EvenkeelError as error:
        return _tell(error, arguments)
    except Exception as error:  # noqa: BLE001  the last place where it can be told
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return EXIT_READER_GONE
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f" while writing {error.filename}" if error.filename else ""
            return _tell(
                EvenkeelError(f"no space left on the disk{what}", hint="make room and run it again"), arguments
            )
        return _defect(error, arguments)


def _invoke(arguments: Sequence[str]) -> int:
    command = root_command()
    if COMPLETE_VARIABLE in os.environ:
        command.main(list(arguments), prog_name="evenkeel")  # answers the shell and exits
    if not arguments:
        with command.make_context("evenkeel", ["--help"], resilient_parsing=True) as context:
            print(command.get_help(context), file=sys.stderr)
        return EXIT_WRONG_INPUT
    with command.make_context("evenkeel", list(arguments)) as context:
        result = command.invoke(context)
    return result if type(result) is int else 0


def _wants_json(arguments: Sequence[str]) -> bool:
    own = list(arguments)
    return "--json" in (own[: own.index("--")] if "--" in own else own)


def _tell(error: EvenkeelError, arguments: Sequence[str]) -> int:
    from evenkeel.cli import output

    output.print_error(error)
    if _wants_json(arguments):
        output.emit_error(error)
    return error.exit_code


def _usage_error(error: typer.TyperException, arguments: Sequence[str]) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its message is its help
        print(error.format_message(), file=sys.stderr)
        return EXIT_WRONG_INPUT
    hint = f"{context.command_path} --help" if context else None
    message = error.format_message().rstrip(".").replace(": Value error, ", ": ")
    hint = f"see `{hint}`" if hint else None
    if context and any(one.param_type_name == "argument" for one in context.command.params):
        hint = f"{context.command_path} {' '.join(context.command.collect_usage_pieces(context))}; {hint}"
    told = WrongInput(message[:1].lower() + message[1:], hint=hint)
    return _tell(told, arguments)


def _defect(error: Exception, arguments: Sequence[str]) -> int:
    traceback.print_exception(error, file=sys.stderr)
    print(
        f"\nerror: {type(error).__name__}: {error}\n"
        "this is a defect in Evenkeel, not a mistake of yours; please report it with the lines above",
        file=sys.stderr,
    )
    if _wants_json(arguments):
        from evenkeel.cli import output

        output.emit_error(error, exit_code=EXIT_DEFECT)
    return EXIT_DEFECT


def _reader_gone() -> bool:
    """True when nobody reads our stdout or stderr any more, as in ``evenkeel facts | head -1``.

    A pipe to a machine can break too; that one is a defect to be told, so the kernel is asked which pipe it was.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (OSError, ValueError):  # replaced by something in memory
            continue
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            # The interpreter flushes once more at its end; give it a place where that works.
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            gone = True
    return gone
