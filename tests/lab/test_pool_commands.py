"""`evenkeel lab machine ...`, `reserve` and the rest, as a person types them, with a real service behind its socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.service import evenkeel, up

RECORDED = Path(__file__).parents[1] / "machines" / "recorded" / "virtual-2s3c2t.tar.bz2"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("pool") / "lab"
    with up(folder) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENKEEL_LAB", str(folder / "lab.sock"))
        patch.setenv("COLUMNS", "160")
        yield
        running.end()  # in order, so that its agent ends too: one outlives a service that was killed


def lab(*words: str) -> str:
    done = evenkeel("lab", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def data(*words: str) -> Any:
    return json.loads(lab(*words, "--json"))


def test_from_adding_a_machine_to_giving_it_back(service: None) -> None:
    assert "evenkeel lab demo" in evenkeel("lab", "machines").stderr
    assert "evenkeel lab machine add" in evenkeel("lab", "reserve", "mem>=1GiB", "-m", "x").stderr
    added = lab("machine", "add", str(RECORDED), "--name", "host1", "--site", "prg", "--tag", "fast")
    assert "host1 is in the pool" in added
    assert "is known" in lab("machine", "add", str(RECORDED), "--same-as", "host1")
    assert [one["name"] for one in data("machines", "cpu.sockets:2", "mem>=1GiB", "tag:fast")] == ["host1"]
    found = lab("search", "site:prg", "--save", "prague")
    assert "host1" in found and "site" in found
    assert data("search", "--saved", "prague")["total"] == 1
    assert "prague" in lab("search", "--list")
    shown = lab("machine", "show", "host1")
    assert "cpu.flag" in shown and "registered" in shown

    reserved = evenkeel("lab", "reserve", "host1", "--for", "4h", "-m", "a bug")
    assert "is yours until" in reserved.stdout and "evenkeel lab release host1" in reserved.stderr
    waits = data("reserve", "cpu.sockets:2", "--for", "1h", "-m", "next")
    assert (waits["state"], waits["waits"]["position"]) == ("waiting", 1)
    assert "next" not in lab("waiting") and "cpu.sockets:2" in lab("waiting")
    refused = evenkeel("lab", "reserve", "host1", "--from", "1h", "-m", "x")
    assert refused.returncode == 1 and "host1 is taken then" in refused.stderr
    assert "booked" in lab("reserve", "host1", "--from", "3d", "--for", "1h", "-m", "later")
    assert "later" in lab("calendar", "--days", "5")
    assert len(data("reservations")) == 3
    assert "a bug" in lab("reservations")
    lab("release", str(waits["id"]))
    assert "is yours until" in lab("extend", "host1", "2h")
    me = data("me")["name"]
    assert f"is {me}'s" in lab("handover", "host1", me)
    assert "ended: given back" in lab("release", "host1")

    image = "https://images.example.org/host.iso"
    lab(
        "machine", "edit", "host1", "--longest", "2d", "--note", "rack 7", "--image", image, "--install-within", "90min"
    )
    policy = data("machine", "show", "host1")["machine"]["policy"]
    assert policy["longest_ns"] == 48 * 3600 * 10**9
    assert (policy["image"], policy["install_ns"]) == (image, 90 * 60 * 10**9)
    both = evenkeel("lab", "machine", "edit", "host1", "--netboot", "http://images.example.org/host.ipxe")
    assert both.returncode == 2 and "not from both" in both.stderr
    lab("machine", "edit", "host1", "--image", "", "--netboot", "http://images.example.org/host.ipxe")
    assert data("machine", "show", "host1")["machine"]["policy"]["netboot"].endswith(".ipxe")
    lab("machine", "edit", "host1", "--netboot", "")
    assert data("machine", "show", "host1")["machine"]["policy"]["netboot"] is None
    assert data("machine", "show", "host1")["machine"]["policy"]["image"] is None
    wrong = evenkeel("lab", "machine", "edit", "host1", "--image", "http://me:secret@images.example.org/host.iso")
    assert wrong.returncode == 2 and "policy.image" in wrong.stderr
    lab("machine", "mark", "host1", "broken", "--reason", "fan 3")
    assert "fan 3" in lab("use", "--not-green")
    assert data("use", "--days", "1")["machines"][0]["claims"] == 1
    assert evenkeel("lab", "machine", "retire", "host1").returncode == 1  # somebody booked it


def test_what_a_command_shows_is_in_words(service: None) -> None:
    assert "mem.usable" in lab("search", "--keys")
    lab("machine", "add", str(RECORDED), "--name", "host2", "--new")
    lab("machine", "mark", "host2", "broken", "--reason", "fan 4")
    assert "ready → broken: fan 4" in lab("machine", "show", "host2")
    told = lab("events", "--type", "machine.state", "--limit", "1")
    assert "machine host2" in told and "new: broken" in told and "_ns" not in told
    assert "was never asked" in evenkeel("lab", "health", "host2").stderr
    assert evenkeel("lab", "token", "list").stderr.startswith("no tokens")
    lab("program", "ci-kernel")
    assert "token 1" in evenkeel("lab", "token", "make", "n", "--of", "ci-kernel", "--may", "read").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("machines", "mem>=4GB"), "did you mean 4GiB?"),
        (("machines", "cpu.flags:avx"), "did you mean cpu.flag?"),
        (("reserve", "no-such-host", "-m", "x"), "no machine is 'no-such-host'"),
        (("reserve", "host1", "--from", "tomorrow", "-m", "x"), "is no time"),
        (("reserve", "host1", "--for", "4", "-m", "x"), "has no unit"),
        (("reserve", "host1", "--image", "/x.iso", "-m", "x"), "as in http://HOST/host.iso"),
        (("release", "no-such-host"), "no machine 'no-such-host'"),
        (("console", "no-such-host"), "no machine no-such-host"),
        (("machine", "show", "no-such-host"), "no machine 'no-such-host'"),
        (("machine", "mark", "no-such-host", "odd"), "state"),
        (("machine", "add", "/no/such/tree"), "is neither a machine nor a recorded tree"),
        (("machine", "add"), "--name NAME"),
        (("machines", "ram>=4GiB"), "did you mean mem?"),
        (("machines", "foo:bar"), "evenkeel lab search --keys"),
        (("reserve", "host1", "--for", "soon", "-m", "x"), "length: 'soon' is not a duration"),
        (("extend", "host1"), "evenkeel lab extend [OPTIONS] {ID|NAME} {DURATION}"),
        (("power", "host1", "on"), "evenkeel lab power on host1"),
        (("token", "make", "x", "--of", "ci", "--may", "read"), "evenkeel lab program ci"),
        (("log", "77", "build"), "there is no submission 77"),
        (("search", "--saved", "nothing"), "no search 'nothing' is kept"),
    ],
)
def test_mistakes_are_told_without_a_traceback(service: None, words: tuple[str, ...], said: str) -> None:
    done = evenkeel("lab", *words)
    assert done.returncode in (1, 2)
    assert said in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    done = evenkeel("lab", "machines", "--lab", str(tmp_path / "none.sock"))
    assert done.returncode == 3 and "no lab answers" in done.stderr
