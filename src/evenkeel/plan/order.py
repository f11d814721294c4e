"""In which order settings are written, and how boot arguments merge into a kernel command line.  Pure text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenkeel.documents.plan import BootArgument, Phase, Setting

#: Arguments in the order in which they stand on the command line: ours come last, in a block a person can recognise.
BOOT_ORDER = (
    "isolcpus",
    "nohz_full",
    "rcu_nocbs",
    "rcu_nocb_poll",
    "irqaffinity",
    "rcutree.kthread_prio",
    "rcutree.nohz_full_patience_delay",
    "skew_tick",
    "tsc",
    "default_hugepagesz",
    "hugepages",
)
# A token of the command line: quotes keep blanks together, as in next_arg() of lib/cmdline.c.
_TOKEN = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_PHASES = list(Phase)


@dataclass(frozen=True)
class Argument:
    """One token; ``value`` is None for a bare flag.  ``after``: the ``hugepagesz=`` before a ``hugepages=``."""

    key: str
    value: str | None
    after: str | None = None

    def __str__(self) -> str:
        text = self.key if self.value is None else f"{self.key}={self.value}"
        return f"{self.after} {text}" if self.after else text


def parse_command_line(text: str) -> list[Argument]:
    """Tokens in order, a ``hugepagesz=S hugepages=N`` pair as one.  Everything behind ``--`` belongs to init."""
    arguments: list[Argument] = []
    size: str | None = None
    for token in _TOKEN.findall(text):
        key, equals, value = token.partition("=")
        if key == "hugepagesz" and equals:
            if size:
                arguments.append(Argument(*size.split("=", 1)))
            size = token
        elif key == "hugepages" and size:
            arguments.append(Argument(key, value, after=size))
            size = None
        else:
            if size:
                arguments.append(Argument(*size.split("=", 1)))
                size = None
            arguments.append(Argument(key, value if equals else None))
    if size:
        arguments.append(Argument(*size.split("=", 1)))
    return arguments


def boot_value(command_line: str, key: str, after: str | None = None) -> str | None:
    """Value of an argument as the kernel sees it (the last one counts); ``""`` for a bare flag, None: not there.

    The kernel reads ``-`` and ``_`` in a key as the same character (parameq() in kernel/params.c).
    """
    found = None
    for argument in parse_command_line(command_line):
        if argument.key == "--":
            break
        if _same_key(argument.key, key) and (after is None or argument.after == after):
            found = argument.value or ""
    return found


def command_line(existing: str, settings: Iterable[Setting]) -> str:
    """The command line ``existing`` with the boot settings of a plan merged in: each of our keys once, at the end.

    Everything that the plan does not own stays where it is.  A setting whose ``new`` is None is taken out.
    """
    ours = [(setting.target, setting.new) for setting in settings if isinstance(setting.target, BootArgument)]
    kept: list[str] = []
    behind: list[str] = []
    for argument in parse_command_line(existing):
        if argument.key == "--" or behind:
            behind.append(str(argument))
        elif not any(_replaces(target, argument) for target, _ in ours):
            kept.append(str(argument))
    added = [
        str(Argument(target.key, new or None, target.after))
        for target, new in sorted(ours, key=lambda pair: _boot_place(pair[0]))
        if new is not None
    ]
    return " ".join(kept + added + behind)


def _same_key(left: str, right: str) -> bool:
    return left.replace("-", "_") == right.replace("-", "_")


def _replaces(target: BootArgument, argument: Argument) -> bool:
    if not _same_key(target.key, argument.key):
        return False
    # A count without a size before it means the default size, which our default_hugepagesz= would change under it.
    return target.after is None or argument.after is None or target.after == argument.after


def _boot_place(target: BootArgument) -> tuple[int, str, str]:
    index = BOOT_ORDER.index(target.key) if target.key in BOOT_ORDER else len(BOOT_ORDER)
    return index, target.key, target.after or ""


def order_settings(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """By phase; within a phase as the catalogue lists the rules, except where the kernel minds:

    * boot arguments in the order of :data:`BOOT_ORDER`;
    * switching the fair server off comes after sched_rt_runtime_us = -1, bringing it back before 950000; the other
      way round the kernel answered EBUSY (measured on 6.12, host-tuning R-RT-3).
    """
    fair_off = any(setting.rule == "R-RT-2" and setting.new == "0" for setting in settings)

    def place(indexed: tuple[int, Setting]) -> tuple[int, tuple[int, str, str], int, int]:
        index, setting = indexed
        boot = _boot_place(setting.target) if isinstance(setting.target, BootArgument) else (0, "", "")
        throttle = {"R-RT-1": 0 if fair_off else 2, "R-RT-2": 1}.get(setting.rule, 0)
        return _PHASES.index(setting.phase), boot, throttle, index

    return tuple(setting for _, setting in sorted(enumerate(settings), key=place))
