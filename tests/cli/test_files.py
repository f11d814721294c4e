"""Files that a user names: what is read, what is refused, and that a written file is whole or untouched."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.cli import files
from evenkeel.cli.root import run
from evenkeel.documents.findings import Findings
from evenkeel.documents.journal import Journal
from evenkeel.documents.plan import Plan
from evenkeel.documents.site import Site
from evenkeel.errors import EvenkeelError, Where, WrongInput
from evenkeel.machines.address import resolve
from evenkeel.machines.virtual.spec import read_spec
from evenkeel.report.folder import load_run

SITE = "version: 1\nhosts:\n  cell:\n    address: local\n"
GUESTS = "version: 1\nguests:\n  plc: {vcpus: 1, memory: 1GiB}\n"
JOURNAL = Journal(host="cell")


# -- sites --------------------------------------------------------------------------------------------------------


def test_a_site_is_a_file_a_folder_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "10-hosts.yaml").write_text(SITE)
    (tmp_path / "20-guests.yml").write_text(GUESTS)
    (tmp_path / "notes.txt").write_text("not a site")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SITE.encode())))
    assert files.load_site(tmp_path / "10-hosts.yaml") == files.load_site("-")
    assert list(files.load_site(tmp_path).guests) == ["plc"]


def test_the_place_of_a_mistake_in_a_folder_is_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SITE)
    (tmp_path / "b.yaml").write_text(GUESTS.replace("1GiB", "1"))
    with pytest.raises(WrongInput) as caught:
        files.load_site(tmp_path)
    assert caught.value.where == Where(str(tmp_path / "b.yaml"), 3, 27)


def test_a_folder_without_a_site(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="no site file in the folder"):
        files.load_site(tmp_path)


def test_plan_or_site_is_told_by_its_content(tmp_path: Path) -> None:
    plan = Plan(site_sha256="0", hosts=())
    files.save_document(tmp_path / "plan", plan)
    (tmp_path / "site").write_text(SITE)
    assert files.load_plan_or_site(tmp_path / "plan") == plan
    assert isinstance(files.load_plan_or_site(tmp_path / "site"), Site)


# -- documents ----------------------------------------------------------------------------------------------------


def test_a_document_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    files.save_document(tmp_path / "journal.json", JOURNAL)
    assert (tmp_path / "journal.json").read_text() == JOURNAL.to_json()
    assert files.load_document(Journal, tmp_path / "journal.json") == JOURNAL


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ('{"kind": "Journal",\n "version": }', "not JSON: Expecting value", 2),
        ("", "not JSON", 1),
        ("[]", "not an Evenkeel document", None),
        (JOURNAL.to_json(), "this is a Journal document, a Findings document is needed here", None),
        ('{"kind": "Findings", "version": 2}', "version: ", None),
        ('{"kind": "Findings", "version": 1, "host": "a", "kernel": "b", "more": 1}', "more: ", None),
        ('{"kind": ["Findings"]}', "not an Evenkeel document", None),
        ('{"kind": "Findings", "version": NaN}', "NaN is not a number in JSON", None),
        ('{"kind": "Findings", "version": 9' + "9" * 5000 + "}", "not a Findings document", None),
        ("[" * 100_000, "not a Findings document", None),
    ],
)
def test_what_is_not_the_document_is_refused(text: str, message: str, line: int | None, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(WrongInput, match=message) as caught:
        files.load_document(Findings, tmp_path / "x.json")
    assert caught.value.where is not None
    assert (caught.value.where.file, caught.value.where.line) == (str(tmp_path / "x.json"), line)


# -- reading ------------------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    with pytest.raises(WrongInput, match="there is no file") as caught:
        files.load_site(tmp_path / "site.yml")
    assert caught.value.hint == f"did you mean {tmp_path / 'site.yaml'}?"


def test_what_cannot_be_read_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"version: 1\nho\xffsts:\n")
    cases = {
        str(tmp_path): "is a folder",
        str(tmp_path / "nowhere" / "site.yaml"): "there is no file",
        str(tmp_path / "binary" / "x"): "Not a directory",
        str(tmp_path / "binary"): "not UTF-8 text: byte 0xff",
        "a\0b": "is not the name of a file",
        "x" * 5000: "File name too long",
    }
    for path, message in cases.items():
        with pytest.raises(WrongInput, match=message) as caught:
            files.read_text(path)
        if path.endswith("binary"):
            assert caught.value.where == Where(path, 2, 3)


def test_a_text_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(WrongInput, match="too large"):
        files.read_text("/dev/zero")


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be looked into, with a site and a recorded tree; for root, by being somebody else."""
    folder = tmp_path / "locked"
    (folder / "tree/sys").mkdir(parents=True)
    (folder / "site.yaml").write_text(SITE)
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_where_one_may_not_look_is_wrong_input(locked: Path) -> None:
    from evenkeel.cli import rollback

    site, tree = locked / "site.yaml", locked / "tree"
    for look in (files.load_site, files.load_plan_or_site, files.place_in_site, resolve, rollback._hosts, read_spec):
        with pytest.raises(WrongInput, match=f"cannot read {site}: Permission denied"):
            look(str(site))
    with pytest.raises(WrongInput, match="Permission denied"):
        resolve(str(tree))
    with pytest.raises(WrongInput, match="Permission denied"):
        load_run([locked / "run"])


def test_a_folder_that_may_be_seen_and_not_read_is_wrong_input(locked: Path) -> None:
    for look in (files.load_site, lambda path: resolve(path).probe().call("facts")):
        with pytest.raises(WrongInput, match=r"cannot read .*: Permission denied"):
            look(str(locked))


@pytest.mark.parametrize(
    "words",
    [
        ["facts", "NAME"],
        ["doctor", "NAME"],
        ["plan", "NAME"],
        ["plan", "SITE", "--facts", "NAME"],
        ["apply", "NAME"],
        ["rollback", "NAME"],
        ["status", "NAME"],
        ["verify", "NAME"],
        ["measure", "NAME"],
        ["measure", "NAME.json"],
        ["report", "NAME"],
        ["virtual", "create", "x", "--topology", "NAME"],
        ["lab", "artifact", "get", "1", "-o", "NAME/x"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_no_defect(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVENKEEL_LAB", str(tmp_path))
    Path("site.yaml").write_text(SITE)
    code = run([word.replace("NAME", "n" * 300).replace("SITE", "site.yaml") for word in words])
    told = capsys.readouterr().err
    assert code in (2, 3) and "Traceback" not in told and "defect" not in told, told


# -- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    fails: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    target = tmp_path / "plan.json"
    target.write_text("old")
    owner: object = os if fails == "fsync" else Path
    monkeypatch.setattr(owner, fails, fail)
    with pytest.raises(EvenkeelError, match=r"cannot write .*plan\.json") as caught:
        files.save_text(target, "new")
    assert caught.value.exit_code == (1 if number == errno.ENOSPC else 2)
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]
    assert target.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "switches.npy"
    target.write_text("old")
    script = (
        "import os, signal, sys\nfrom evenkeel.cli import files\n"
        "with files.writing(sys.argv[1]) as stream:\n"
        "    stream.write(b'half')\n    stream.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    # What a kill leaves has another name, and no ending that one would take for a whole file.
    (left,) = (one for one in tmp_path.iterdir() if one != target)
    assert left.name.startswith(".switches.npy.") and left.suffix != ".npy"


def test_an_error_of_the_work_within_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "switches.npy"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.writing(target) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [target] and target.read_text() == "old"


def test_a_place_is_tried_before_the_work_and_nothing_stays_of_it(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    files.check_places(None, "-", "/dev/stdout", old, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [old] and old.read_text() == "old"
    with pytest.raises(WrongInput, match="No such file or directory") as caught:
        files.check_places(tmp_path / "out" / "new")
    assert caught.value.hint == f"make the folder first: mkdir -p {tmp_path / 'out'}"
    with pytest.raises(WrongInput, match="Is a directory"):
        files.check_places(tmp_path)
    with pytest.raises(WrongInput, match="Not a directory"):
        files.check_places(old / "new")


def test_a_real_full_device() -> None:
    with pytest.raises(EvenkeelError, match="cannot write /dev/full: No space left on device"):
        files.save_text("/dev/full", "x")


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(WrongInput) as caught:
        files.save_text(tmp_path / "out" / "plan.json", "x")
    assert caught.value.hint == f"make the folder first: mkdir -p {tmp_path / 'out'}"


def test_mode_and_links_are_kept(tmp_path: Path) -> None:
    target, link, fresh = tmp_path / "plan.json", tmp_path / "link", tmp_path / "fresh"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    files.save_text(link, "new")
    files.save_text(fresh, "x")
    assert link.is_symlink() and target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert fresh.stat().st_mode == plain.stat().st_mode, "as an ordinary write makes it"


def test_a_circle_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(WrongInput, match="Too many levels of symbolic links"):
        files.save_text(tmp_path / "a", "x")


def test_dash_is_stdout(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with contextlib.chdir(tmp_path):
        files.save_text("-", "text\n")
        files.save_bytes(Path("-"), b"\x1f\x8b\xff")
    assert capsysbinary.readouterr().out == b"text\n\x1f\x8b\xff"
    assert list(tmp_path.iterdir()) == []
