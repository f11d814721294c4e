"""What stands in for a guest with timerlat on a machine whose kernel may have none, for the script that records it.

A folder that looks like the tracefs of a guest, whose instances are those of the real one, and the script, which
records the scheduler there.  Used by tests and by a bench.
"""

from __future__ import annotations

from pathlib import Path

from evenkeel.probe import recording_guest
from tests.measure.explain.constructed import HEADER, TIMERLAT


def make_tracing(folder: Path, real: Path) -> None:
    """``real``: the tracefs of this machine."""
    files = {"available_tracers": "timerlat nop\n", "osnoise/cpus": "0-7\n", "osnoise/timerlat_period_us": "1000\n"}
    files |= {"osnoise/stop_tracing_total_us": "0\n", "events/header_page": HEADER}
    files |= {"events/ftrace/timerlat/format": TIMERLAT}
    files |= {"events/ftrace/print/format": (real / "events/ftrace/print/format").read_text()}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "instances").symlink_to(real / "instances")


def script(tracing: Path, files: Path, prefix: str, text: str | None = None) -> str:
    """The script of the recorder for that folder.  ``files``: where it writes; ``prefix``: of its instance's name;
    ``text``: another script that begins like it.
    """
    found = text or recording_guest.SCRIPT
    for old, new in (
        # Names of its own: another test run on this machine has its guest too.
        ("/run/evenkeel-spikes", str(files)),
        ("instances/evenkeel-", f"instances/{prefix}"),
        ("T=/sys/kernel/tracing", f"T={tracing}"),
        ("$I/events/osnoise/$e", "$I/events/sched/$e"),
        ("nmi_noise irq_noise softirq_noise thread_noise", "sched_switch sched_waking"),
        ("echo timerlat >$I/current_tracer", "echo nop >$I/current_tracer"),
        ("$out/osnoise:$e.format", "$out/sched:$e.format"),
    ):
        assert old in found or text
        found = found.replace(old, new)
    return found
