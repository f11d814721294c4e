"""A virtual host for the tests: one for the whole session, made from the cached image, removed at the end.

Its building is never skipped: without QEMU or an image the tests fail and say what is missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evenkeel.errors import EvenkeelError, Unreachable
from evenkeel.machines.virtual import VirtualMachine, lifecycle
from evenkeel.machines.virtual.spec import BUILT_IN, HostSpec

if TYPE_CHECKING:
    from tests.lab.service import Running
    from tests.virtual.tuned import TunedHost

#: What a test can do nothing about: an emulated host that went away, stands still, or does not come up twice.
EMULATOR = [Unreachable, subprocess.TimeoutExpired]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a test once more whose host was lost; the closing line says so (``1 rerun``).  Never one that failed.

    A defect that loses the host does so twice.

    Two emulated hosts at a time are slow on two cores, and one that nobody asks anything takes half a core.  So first
    come the tests of the tuned host, then those that boot their own, and last those of the untuned one.
    """
    for item in items:
        if _here(item):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=EMULATOR))
    items.sort(key=_turn)


def _here(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent


def _turn(item: pytest.Item) -> int:
    wanted = _wanted(item)
    if "virtual_host" in wanted:
        return 3
    if "tuned_host" in wanted:
        return 1
    return 2 if _here(item) else 0


def _wanted(item: pytest.Item) -> list[str]:
    """The fixtures of a test, and which host it has where it runs on several."""
    callspec = getattr(item, "callspec", None)
    return [*getattr(item, "fixturenames", ()), *([callspec.params.get("any_host")] if callspec else [])]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The tuned host goes before the first test that does not want it: none behind it does."""
    if "tuned_host" not in _wanted(item):
        _TUNED.close()


#: The topology of the session's host: 2 sockets x 2 cores x 2 threads, 2 nodes, all kinds of devices.
SPEC = BUILT_IN["small"]


def host_name(what: str) -> str:
    """A name that no other test run uses, and that tells which one made it."""
    return f"test-{os.getpid()}-{what}"


def remove_orphans() -> None:
    """Remove the hosts of test runs that were killed."""
    for host in lifecycle.listing():
        match = re.fullmatch(r"test-(\d+)-.*", host.name)
        if match:
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                lifecycle.remove(host.name)


@contextlib.contextmanager
def running_host(what: str, spec: HostSpec) -> Iterator[VirtualMachine]:
    """A booted host that is removed at the end, whatever happens."""
    name = host_name(what)
    lifecycle.create(name, spec)
    try:
        lifecycle.start(name)
        machine = VirtualMachine(name)
        yield machine
        machine.close()
    finally:
        with contextlib.suppress(EvenkeelError):
            lifecycle.remove(name)


#: Holds the tuned host of the session, which ends with its last test and not with the session.
_TUNED = contextlib.ExitStack()


@pytest.fixture(scope="session")
def virtual_host() -> Iterator[VirtualMachine]:
    """A running virtual host.  Tests that change it must put it back."""
    remove_orphans()
    with running_host("shared", SPEC) as machine:
        yield machine


@pytest.fixture(scope="session")
def tuned_host() -> Iterator[TunedHost]:
    """A virtual host with a plan applied and its guests running.  Tests that change it must put it back."""
    from tests.virtual.tuned import tuned

    remove_orphans()
    with _TUNED:
        yield _TUNED.enter_context(tuned())


@pytest.fixture(params=["tuned_host", pytest.param("virtual_host", marks=pytest.mark.long)])
def any_host(request: pytest.FixtureRequest) -> VirtualMachine:
    """A running virtual host, for what is true of each.  To boot another only for that takes a minute."""
    host = request.getfixturevalue(request.param)
    return host if isinstance(host, VirtualMachine) else host.machine


def spec_of(machine: VirtualMachine) -> HostSpec:
    """What it was made from."""
    spec = next(host.spec for host in lifecycle.listing() if host.name == machine.name)
    assert spec
    return spec


@pytest.fixture(scope="module")
def lab_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A lab that runs, with virtual hosts that are nobody else's: `evenkeel lab ...` is asked to it."""
    from tests.lab.service import up

    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("EVENKEEL_LAB", str(folder / "lab"))
        with up(folder / "lab") as running:
            try:
                yield running
            finally:
                for host in lifecycle.listing():
                    lifecycle.remove(host.name)


def on_host(machine: VirtualMachine, script: str, *, timeout_s: float = 300.0) -> str:
    """Run a shell script on the host and return its output; the test fails when the script does."""
    done = subprocess.run(
        lifecycle.ssh_command(machine.ssh_target(), "sh", "-eu"),
        input=script,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()
