"""Exits of a real KVM guest, counted by the event and by bpftrace in the same run; counters that are refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import exits, question, tracefs
from tests.probe.trace.load import with_tracefs
from tests.probe.trace.test_count import bpftrace_count
from tests.probe.trace.vm import TinyGuest, tiny_guest

ASKED = {"kind": "exits", "events": [exits.EVENT], "guest": "ek-exits"}


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    if not Path("/dev/kvm").exists():
        pytest.skip("no KVM here")
    try:
        with tiny_guest("ek-exits") as one:
            yield one
    except OSError as error:
        pytest.skip(f"KVM does not run a guest here: {error}")
    finally:
        question.trace_close()


def test_the_events_count_every_exit_as_bpftrace_does(guest: TinyGuest) -> None:
    script = bpftrace_count(exits.USERSPACE, guest.pid)
    bpftrace = subprocess.Popen(
        with_tracefs("bpftrace", "-B", "line", "-e", script),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert bpftrace.stdout
    while "on" not in bpftrace.stdout.readline():
        assert bpftrace.poll() is None, "bpftrace did not start"
    question.trace_start(dict(ASKED), "tracepoint")
    guest.exit(2000)
    found = question.trace_finish()
    theirs = int(re.findall(r"@: (\d+)", bpftrace.communicate(timeout=120)[0])[0])
    outside = [row for row in found["rows"] if row["label"].startswith("to QEMU")]
    assert [(row["label"], row["count"]) for row in outside] == [("to QEMU: IO", 2000)]
    assert theirs == 2000
    inside = [row for row in found["rows"] if row["key"] == "vCPU 0"]
    if inside:  # every exit, so those of interrupts of the host, too
        assert not found["only_userspace"]
        assert found["events"] == sum(row["count"] for row in inside) >= 2000
    else:  # PVM has no event for an exit, and the answer must say so
        assert found["only_userspace"]
        assert found["events"] == 2000


def test_the_free_counters_agree_where_the_kernel_lets_us_read_them(guest: TinyGuest) -> None:
    try:
        question.trace_start(dict(ASKED), "debugfs")
    except StepFailed as error:
        # Only a locked-down kernel may say no to root, and then it says so itself.
        assert error.code == 1, error.message
        assert "[none]" not in Path("/proc/cmdline").read_text()
        return
    guest.exit(2000)
    found = question.trace_finish()
    assert found["events"] >= 2000
    assert any(row["label"] == "io_exits" and row["count"] == 2000 for row in found["rows"])


def test_a_guest_that_does_not_run_is_refused_with_those_that_do(guest: TinyGuest) -> None:
    for source in ("debugfs", "libvirt", "tracepoint"):
        with pytest.raises(StepFailed, match=r"no guest nobody runs here.*ek-exits") as caught:
            question.trace_start({**ASKED, "guest": "nobody"}, source)
        assert caught.value.code == 2


def test_reasons_have_the_kernels_own_names() -> None:
    names = exits.reasons(tracefs.read(tracefs.event_folder(exits.EVENT) + "/format"))
    assert names[1, 12] == "HLT", "VMX, Intel SDM appendix C"
    assert names[1, 30] == "IO_INSTRUCTION"
    assert names[2, 0x78] == "hlt", "SVM, AMD APM appendix C"


def test_domstats_of_libvirt() -> None:
    """The names are those of libvirt 9 with QEMU 8: what KVM counts, with its kind behind it."""
    text = "Domain: 'plc'\n  vcpu.current=2\n  vcpu.0.exits.sum=812\n  vcpu.0.halt_exits.sum=10\n  vcpu.1.exits.sum=7\n"
    text += "  vcpu.1.halt_wait_ns.sum=55\n  vcpu.0.state=1\n"
    assert exits.parse_domstats(text) == {(0, "exits"): 812, (0, "halt_exits"): 10, (1, "exits"): 7}
