"""Warnings as compilers write them: the same one stays the same where only its place moved, and another one is new."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from evenkeel.documents.result import Place, Result, Times, Warned
from evenkeel.lab.compare import compare
from evenkeel.lab.warnings import new_warnings, normalise, warnings_in

#: As gcc 12, ld, modpost, objtool, sparse and rustc write them.
LOG = """\
  CC [M]  drivers/net/foo.o
drivers/net/foo.c: In function ‘foo_open’:
drivers/net/foo.c:120:13: warning: unused variable ‘i’ [-Wunused-variable]
  120 |         int i;
      |             ^
In file included from drivers/net/foo.c:3:
./include/linux/bar.h:7:5: warning: ‘x’ defined but not used [-Wunused-variable]
In file included from drivers/net/baz.c:1:
./include/linux/bar.h:7:5: warning: ‘x’ defined but not used [-Wunused-variable]
drivers/net/foo.c:200:1: error: expected ‘;’
WARNING: modpost: missing MODULE_LICENSE() in drivers/net/foo.o
WARNING: modpost: vmlinux.o: section mismatch in reference: foo_open+0x12 (section: .text) -> bar (section: .init.text)
drivers/net/foo.o: warning: objtool: foo_open+0x1c4: call to memcpy() with UACCESS enabled
ld: warning: foo.o: missing .note.GNU-stack section implies executable stack
warning: unused variable: `y`
  --> rust/kernel/lib.rs:12:9
net/core/x.c:9:1: warning: symbol 'z' was not declared. Should it be static?
"""


def test_each_tool_is_read() -> None:
    found = {(one.tool, one.file, one.text) for one in warnings_in(LOG)}
    assert found == {
        ("cc", "drivers/net/foo.c", "unused variable 'i' [-Wunused-variable]"),
        ("cc", "include/linux/bar.h", "'x' defined but not used [-Wunused-variable]"),
        ("modpost", "", "missing MODULE_LICENSE() in drivers/net/foo.o"),
        (
            "modpost",
            "",
            "vmlinux.o: section mismatch in reference: foo_open (section: .text) -> bar (section: .init.text)",
        ),
        ("objtool", "drivers/net/foo.o", "foo_open: call to memcpy() with UACCESS enabled"),
        ("ld", "", "foo.o: missing .note.GNU-stack section implies executable stack"),
        ("rustc", "rust/kernel/lib.rs", "unused variable: 'y'"),
        ("cc", "net/core/x.c", "symbol 'z' was not declared. Should it be static?"),
    }
    assert all(one.times == 1 for one in warnings_in(LOG))  # the header was told twice, at one place


def test_a_moved_line_another_folder_and_another_order_are_nothing_new() -> None:
    moved = LOG.replace("foo.c:120:", "foo.c:350:").replace("+0x1c4", "+0x2a0").replace("./include", "../../include")
    moved = "\n".join(reversed(moved.splitlines()[:9])) + "\n" + "\n".join(moved.splitlines()[9:])
    assert new_warnings(warnings_in(moved), warnings_in(LOG)) == ()
    assert new_warnings(warnings_in(LOG), warnings_in(moved)) == ()


def test_roots_are_left_out() -> None:
    one = warnings_in("/tmp/a/in/src/m.c:1:2: warning: w [-Wx]\n", ["/tmp/a", "/tmp/a/in"])
    other = warnings_in("/var/b/in/src/m.c:9:2: warning: w [-Wx]\n", ["/var/b/in"])
    assert one == other
    assert one[0].file == "src/m.c"


def test_another_text_file_or_more_of_the_same_is_new() -> None:
    base = warnings_in("a.c:1:1: warning: w [-Wx]\n")
    for log, times in (
        ("a.c:1:1: warning: v [-Wx]\n", 1),
        ("b.c:1:1: warning: w [-Wx]\n", 1),
        ("a.c:1:1: warning: w [-Wx]\na.c:5:1: warning: w [-Wx]\na.c:7:1: warning: w [-Wx]\n", 2),
    ):
        assert [one.times for one in new_warnings(warnings_in(log), base)] == [times], log
    assert new_warnings((), base) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("'f.isra.0' defined", "'f.isra.3' defined"),
        ("see a.h:12:3", "see a.h:99:1"),
        ("'__UNIQUE_ID_ddebug123' unused", "'__UNIQUE_ID_ddebug77' unused"),
        (
            "in /usr/src/linux-headers-6.1.0-30-common/include/x.h",
            "in /usr/src/linux-headers-6.1.0-31-common/include/x.h",
        ),
        ("at address 0xffff", "at address 0x1234"),
    ],
)
def test_what_moves_is_left_out(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("array of 16", "array of 32"), ("'a' unused", "'b' unused"), ("[-Wa]", "[-Wb]")]
)
def test_what_matters_stays(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_a_real_compiler(tmp_path: Path) -> None:
    def log(source: str) -> tuple[Warned, ...]:
        (tmp_path / "a.c").write_text(source)
        done = subprocess.run(
            ["gcc", "-Wall", "-c", "-o", "/dev/null", "a.c"], cwd=tmp_path, capture_output=True, text=True
        )
        return warnings_in(done.stderr)

    before = log("int f(void) { int i; return 0; }\n")
    assert len(before) == 1
    assert new_warnings(log("\n\n// moved\nint f(void) { int i; return 0; }\n"), before) == ()
    assert len(new_warnings(log("int f(void) { int i, j; return 0; }\n"), before)) == 1


def result(**more: object) -> Result:
    base = {"step": "s", "step_sha256": "x", "state": "passed", "times": Times(started_ns=0, ended_ns=60 * 10**9)}
    return Result.model_validate({**base, "place": Place(host="h"), **more})


def test_comparison_of_states_times_and_nested_outputs() -> None:
    one = result(output={"a": {"b": 1, "c": 2}, "list": [1]}, settings={"x": "1"}, inputs={"src": "aa"})
    assert compare(one, one).verdict == "same"
    other = result(output={"a": {"b": 1, "c": 3}}, settings={"x": "2"}, inputs={"src": "bb"}, step_sha256="y")
    found = compare(one, other)
    assert found.verdict == "changed"
    assert [(c.key, c.before, c.now) for c in found.outputs] == [("a.c", 2, 3), ("list", [1], None)]
    assert [c.key for c in found.settings] == ["x"] and [c.key for c in found.inputs] == ["src"]
    assert not found.definition_changed  # the settings say it all
    assert compare(one, result(step_sha256="y", settings={"x": "1"})).definition_changed
    slow = result(times=Times(started_ns=0, ended_ns=100 * 10**9))
    assert compare(one, slow).slower and compare(slow, one).faster
    assert compare(one, result(state="failed", cause="exit")).verdict == "worse"
    assert compare(result(state="timed-out"), one).verdict == "better"
    assert compare(one, one).warnings_new is None  # nobody had a log: not "no new warnings"
