"""What works on this machine, by trying each source on something that hardly ever happens.

Attached, taken off again, and what the kernel said.  Must not leave anything attached and must not choose.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any, Callable, Iterator, Sequence

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import functions, stacks, templates
from evenkeel.probe.trace.sources import COUNTERS, HOOKS, Hook, PerfCounter, Samples

#: What every kernel with tracing has, and what happens seldom enough to be tried anywhere.
TRIAL = "sched:sched_process_exec"


#: Names of a function that exists everywhere and runs when a machine changes its name.
_FUNCTIONS = ("__do_sys_sethostname", "__x64_sys_sethostname", "__arm64_sys_sethostname", "__se_sys_sethostname")


def _seldom_called() -> str:
    """A uprobe on a function of the C library that hardly anybody calls; its file is the one that we run ourselves."""
    for mapping in stacks.read_maps(os.getpid()):
        table, _ = stacks.elf_functions(mapping.path)
        if table.address("gnu_get_libc_version") is not None:
            return "uprobe:%s:gnu_get_libc_version" % mapping.path
    return "uprobe:%s:main" % os.path.realpath("/proc/self/exe")


def trials() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(source, on what, something that makes it) for each source that can be tried."""
    for name, hook in HOOKS.items():
        event = "1" if hook is Samples else TRIAL
        yield name, TRIAL if event == TRIAL else "the CPU clock", lambda hook=hook, event=event: _counting(hook(event))  # type: ignore[misc]
    for name, counter in COUNTERS.items():
        yield name, TRIAL, lambda counter=counter: counter(TRIAL)  # type: ignore[misc]
    function = "function:%s" % next((one for one in _FUNCTIONS if functions.same_address(one)), _FUNCTIONS[0])
    for name, make in functions.HOOKS.items():
        event = _seldom_called() if name == "uprobe" else function
        yield name, event, lambda make=make, event=event: _counting(make(event))  # type: ignore[misc]
    yield "function", function, lambda: functions.FunctionTracer(function)
    yield "perf", "hardware:cycles", lambda: PerfCounter("hardware:cycles")


def _counting(hook: Hook) -> Hook:
    numbers = templates.statistics()
    try:
        hook.load(templates.count(numbers, hook.select), "a trial")
        return hook
    except StepFailed:
        hook.close()
        raise
    finally:
        numbers.close()  # the program holds it


def try_sources(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Operation: each source on an event that hardly ever happens: attached, taken off again, and what the kernel said.

    ``[{"source", "event", "works", "mechanism" | "message", "errno"}]``.
    """
    found = []
    for name, event, make in trials():
        if names and name not in names:
            continue
        row: dict[str, Any] = {"source": name, "event": event, "works": False}
        try:
            with contextlib.closing(make()) as source:
                source.attach()
                row.update(works=True, mechanism=source.mechanism())
                source.detach()
        except StepFailed as error:
            row["message"] = error.message
            row["errno"] = errno.errorcode.get(error.code, str(error.code)) if error.code else None
        except OSError as error:
            row["message"] = error.strerror or str(error)
            row["errno"] = errno.errorcode.get(error.errno or 0)
        found.append(row)
    return found
