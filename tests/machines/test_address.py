"""What a user may write for a machine, and what comes of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import WrongInput
from evenkeel.machines.address import resolve
from evenkeel.machines.local import LocalMachine
from evenkeel.machines.ssh import SshMachine


def test_local() -> None:
    assert isinstance(resolve("local"), LocalMachine)


@pytest.mark.parametrize(
    ("address", "destination", "port"),
    [
        ("ssh://root@cell-1", "root@cell-1", None),
        ("ssh://cell-1:2222", "cell-1", 2222),
        ("ssh://root@[fe80::1]:22/", "root@fe80::1", 22),
    ],
)
def test_ssh(address: str, destination: str, port: int | None) -> None:
    machine = resolve(address)
    assert isinstance(machine, SshMachine)
    assert (machine.target.destination, machine.target.port) == (destination, port)
    assert machine.address == address


@pytest.mark.parametrize(
    "address",
    [
        "ssh://",
        "ssh://root@",
        "ssh://-oProxyCommand=reboot",
        "ssh://-l@host",
        "ssh://root@host:99999",
        "ssh://root@host:0",
        "ssh://root@host/some/path",
        "ssh://root@host?x=1",
        "ssh://root:secret@host",
        "ssh://[fe80::1",
        "cell-1",
        "",
        "/nowhere/at/all",
        "virtual:../../etc",
    ],
)
def test_anything_else_is_wrong_input(address: str) -> None:
    with pytest.raises(WrongInput) as caught:
        resolve(address)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_path_is_a_recorded_tree(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)).read_only


@given(st.text(max_size=30))
def test_no_text_at_all_makes_an_ssh_option(text: str) -> None:
    try:
        machine = resolve(f"ssh://{text}")
    except WrongInput:
        return
    assert isinstance(machine, SshMachine)
    argv = machine._argv("true")
    machine.close()
    assert not machine.target.destination.startswith("-")
    assert argv[-2] == machine.target.destination
    assert argv[-3] == "--"
