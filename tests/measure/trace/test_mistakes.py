"""What `evenkeel trace` says to a user's mistake, with the probe of this machine.  Nothing is measured here."""

from __future__ import annotations

import pytest

from evenkeel.cli.root import run


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("count", "sched:sched_swich"), 2, "sched:sched_switch"),
        (("count", "nonsense"), 2, "SYSTEM:NAME"),
        (("count", "hardware:nonsense"), 2, "cycles"),
        (("count", "sched:sched_switch", "--for", "0s"), 2, "--for"),
        (("count", "sched:sched_switch", "--for", "5"), 2, "error: --for: '5' has no unit"),
        (("count", "sched:sched_switch", "--cpus", "x"), 2, "error: --cpus: "),
        (("count", "sched:sched_switch", "--cpus", "0,4094"), 2, "local has no CPU 4094; online there: 0"),
        (("noise", "4094"), 2, "local has no CPU 4094"),
        (("top", "sched:sched_switch", "--by", "colour"), 2, "invalid value for '--by': 'colour' is not one of"),
        (("count", "sched:sched_switch", "--source", "magic"), 2, "magic cannot answer"),
        (("top", "sched:sched_switch", "--source", "perf"), 2, "perf cannot answer"),
        (("latency", "sched:sched_waking", "sched:nothing"), 2, "sched:nothing"),
        (("latency", "sched:sched_waking", "sched:sched_switch", "--key", "colour"), 2, "no field colour"),
        (("latency", "syscalls:sys_enter_read", "function:vfs_read"), 2, "take both ends of one kind"),
        (("count", "software:page-faults", "--process", "4194304"), 2, "there is no process 4194304"),
        (("count", "sched:sched_switch", "--process", "4194304"), 2, "there is no process 4194304"),
        (("count", "function:no_such_function_here"), 2, "no function no_such_function_here"),
        (("count", "uprobe:/no/such/file:main"), 2, "no file"),
        (("exits", "no-such-guest"), 2, "no guest no-such-guest runs here"),
        (("noise", "x"), 2, "error: CPU: "),
        (("record", "sched:sched_switch", "out.txt"), 2, ".npy or .csv"),
        (("record", "sched:sched_switch", ".npy"), 2, ".npy or .csv"),
        (("record", "sched:sched_switch", "/no/such/folder/out.npy", "--for", "24h"), 2, "cannot write"),
        (("count", "sched:sched_switch", "-o", "/no/such/folder/out.json", "--for", "24h"), 2, "mkdir -p"),
        (("profile", "--flame", "/proc/flame.html", "--for", "24h"), 2, "cannot write"),
        (("record", "sched:sched_switch", "out.npy", "--field", "colour"), 2, "no field colour"),
        (("count", "sched:sched_switch", "--on", "ssh://root@127.0.0.1:1"), 3, "127.0.0.1"),
    ],
)
def test_a_mistake_is_said_without_a_traceback(
    words: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", *words]) == code
    told = capsys.readouterr()
    assert says in told.err
    assert "Traceback" not in told.err
    assert not told.out
