"""The shipped steps, run for real on small things that have what each of them looks for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.lab.local import Outcome, run_graph
from evenkeel.lab.runner import Ran, Run
from evenkeel.lab.step import Graph, Input, Use, find_step, read_graph, read_step, resolve, shipped

ROOT = Path(__file__).parents[2]
Runner = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    def run(name: str, files: dict[str, Path | str], *, place: str = "step", **settings: str) -> Ran:
        step = find_step(name)
        inputs = {
            key: Input(git=str(value))
            if isinstance(value, Path) and (value / ".git").is_dir()
            else Input(file=str(value))
            for key, value in files.items()
        }
        graph = Graph(name="try", steps={name: Use(step=step, set=settings, inputs=inputs)})
        whole = resolve(graph, {}, find_step)
        return Run(whole.steps[name], tmp_path / place, files_from=tmp_path).run()

    return run


class Repository:
    """A git repository whose commits have the same names on every machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = 1_700_000_000
        folder.mkdir()
        self.git("init", "-q", "-b", "master")

    def git(self, *words: str) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
        for who in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{who}_NAME": "a", f"GIT_{who}_EMAIL": "a@x", f"GIT_{who}_DATE": f"{self.clock} +0000"}
        done = subprocess.run(["git", *words], cwd=self.folder, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str, **files: str) -> str:
        self.clock += 60
        for name, text in (files or {"f": f"{self.clock}\n"}).items():
            (self.folder / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_each_shipped_step_can_be_read_and_says_what_it_is_for(name: str) -> None:
    step = read_step(shipped()[name])
    assert step.kind == name
    assert len(step.help.splitlines()[0]) > 20
    assert all(parameter.help for parameter in step.parameters.values())
    assert all(given.help for given in step.inputs.values())


# -- new-warnings -----------------------------------------------------------------------------------------------------


def test_new_warnings(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "base").write_text("a.c:1:1: warning: old [-Wx]\n")
    (tmp_path / "log").write_text("a.c:9:1: warning: old [-Wx]\na.c:2:1: warning: fresh [-Wy]\n")
    ran = run("new-warnings", {"log": "log", "base": "base"})
    assert (ran.result.state, ran.result.cause) == ("failed", "exit")
    assert ran.result.output == {"base": True, "warnings": 2, "new": 1, "gone": 0}
    assert ran.files["new"].read_text() == "a.c: fresh [-Wy]\n"
    assert run("new-warnings", {"log": "log", "base": "base"}, allowed="1").result.state == "passed"
    assert run("new-warnings", {"log": "log", "base": "log"}).result.state == "passed"
    first = run("new-warnings", {"log": "log"}).result
    assert (first.state, first.output["base"], first.output["new"]) == ("passed", False, 0)


# -- kabi -------------------------------------------------------------------------------------------------------------


def symvers(folder: Path, name: str, **symbols: str) -> str:
    lines = (f"{crc}\t{symbol}\tmod\tEXPORT_SYMBOL_GPL\t\n" for symbol, crc in symbols.items())
    (folder / name).write_text("".join(lines))
    return name


def test_kabi(run: Runner, tmp_path: Path) -> None:
    old = symvers(tmp_path, "old", kept="0x1", moved="0x2", lost="0x3")
    new = symvers(tmp_path, "new", kept="0x1", moved="0x9", fresh="0x4")
    result = run("kabi", {"symvers": new, "base": old}).result
    assert result.state == "failed"
    output = result.output
    assert (output["removed"], output["changed"], output["added"]) == (["lost"], ["moved"], ["fresh"])
    assert output["broken"] is True and output["abidiff"] == "not asked for"
    # Only what is promised counts.
    (tmp_path / "promised").write_text("kept\n")
    result = run("kabi", {"symvers": new, "base": old, "symbols": "promised"}).result
    assert result.state == "passed"
    assert run("kabi", {"symvers": old, "base": old}).result.output["broken"] is False
    assert run("kabi", {"symvers": new}).result.output["base"] is False


def test_kabi_sees_another_export(run: Runner, tmp_path: Path) -> None:
    old = symvers(tmp_path, "old", kept="0x1")
    (tmp_path / "new").write_text((tmp_path / old).read_text().replace("_GPL", ""))
    assert run("kabi", {"symvers": "new", "base": old}).result.output["exported_otherwise"] == ["kept"]


# -- missing-fixes ----------------------------------------------------------------------------------------------------


def test_missing_fixes(run: Runner, tmp_path: Path) -> None:
    tree = Repository(tmp_path / "tree")
    tree.commit("start")
    feature = tree.commit("net: add a feature")
    other = tree.commit("mm: another thing")
    not_ours = tree.commit("fs: not taken")
    late = tree.commit("net: second feature")
    fix_missing = tree.commit(f'net: repair the feature\n\nFixes: {feature[:12]} ("net: add a feature")')
    fix_taken = tree.commit(f'mm: repair that\n\nFixes: {other[:12]} ("mm: another thing")')
    tree.commit(f'fs: repair what nobody took\n\nFixes: {not_ours[:12]} ("fs: not taken")')
    revert = tree.commit(f'Revert "net: second feature"\n\nThis reverts commit {late}.')
    fix_of_fix = tree.commit(f'mm: repair the repair\n\nFixes: {fix_taken[:10]} ("mm: repair that")')

    tree.git("checkout", "-q", "-b", "stable", f"{feature}^")
    tree.git("checkout", "-q", "-b", "topic")
    ours = tree.commit(f"net: add a feature\n\ncommit {feature} upstream.")
    tree.commit(f"mm: another thing\n\n[ Upstream commit {other} ]")
    tree.commit(f"net: second feature\n\n(cherry picked from commit {late})")
    tree.commit(f"mm: repair that\n\nGit-commit: {fix_taken}")
    tree.commit("only here")

    files = {"tree": tree.folder}
    settings = {"range": "origin/stable..origin/topic", "upstream": "origin/master"}
    result = run("missing-fixes", files, **settings).result
    assert result.state == "failed"
    assert result.output["commits"] == 5
    found = {one["commit"]: one for one in result.output["fixes"]}
    assert set(found) == {fix_missing, revert, fix_of_fix}
    assert found[fix_missing]["ours"] == ours and found[fix_missing]["fixes"] == feature
    assert found[revert]["reverts"] == late
    # Nothing that is in the range or known counts.
    (tmp_path / "known").write_text(f"{fix_missing[:12]} not for us\n{revert} \n{fix_of_fix}\n")
    result = run("missing-fixes", {**files, "exceptions": "known"}, **settings).result
    assert (result.state, result.output["missing"], result.output["excepted"]) == ("passed", 0, 3)
    tree.commit(f"net: repair the feature\n\ncommit {fix_missing} upstream.")
    result = run("missing-fixes", files, **settings).result
    assert {one["commit"] for one in result.output["fixes"]} == {revert, fix_of_fix}


def test_missing_fixes_with_upstream_in_another_repository(run: Runner, tmp_path: Path) -> None:
    upstream = Repository(tmp_path / "upstream")
    bug = upstream.commit("bug")
    fix = upstream.commit(f'cure\n\nFixes: {bug[:12]} ("bug")')
    tree = Repository(tmp_path / "tree")
    tree.commit("start")
    tree.git("branch", "base")
    tree.commit(f"bug\n\ncommit {bug} upstream.")
    files = {"tree": tree.folder, "upstream_tree": upstream.folder}
    result = run("missing-fixes", files, range="origin/base..origin/master", upstream="origin/master").result
    assert [one["commit"] for one in result.output["fixes"]] == [fix]


def test_a_range_that_does_not_exist_is_told(run: Runner, tmp_path: Path) -> None:
    tree = Repository(tmp_path / "tree")
    tree.commit("start")
    ran = run("missing-fixes", {"tree": tree.folder}, range="origin/no..origin/master")
    assert (ran.result.state, ran.result.exit) == ("failed", 2)
    assert "origin/no" in ran.log.read_text()


# -- merge ------------------------------------------------------------------------------------------------------------


def test_merge(run: Runner, tmp_path: Path) -> None:
    tree = Repository(tmp_path / "tree")
    tree.commit("start", a="1\n", b="1\n")
    tree.git("checkout", "-q", "-b", "good")
    tree.commit("b is two", b="2\n")
    tree.git("checkout", "-q", "-b", "bad", "master")
    tree.commit("a is two", a="2\n")
    tree.git("checkout", "-q", "master")
    tree.commit("a is three", a="3\n")
    ran = run("merge", {"tree": tree.folder}, branch="good")
    assert (ran.result.state, ran.result.output["conflict"], ran.result.output["files"]) == ("passed", False, [])
    assert [one.name for one in ran.result.artifacts] == ["source"]
    listed = subprocess.run(["tar", "-xOf", ran.files["source"], "a", "b"], capture_output=True, text=True, check=True)
    assert listed.stdout == "3\n2\n"
    again = run("merge", {"tree": tree.folder}, place="elsewhere", branch="good")
    assert again.result.comparable() == ran.result.comparable()
    bad = run("merge", {"tree": tree.folder}, branch="bad").result
    assert (bad.state, bad.output["conflict"], bad.output["files"]) == ("passed", True, ["a"])
    assert bad.artifacts == ()
    assert run("merge", {"tree": tree.folder}, branch="nope").result.state == "failed"


# -- kernel-module ----------------------------------------------------------------------------------------------------

#: Debian's names, and the compiler that each needs.
ARCHITECTURES = {
    "amd64": "x86_64-linux-gnu-gcc-12",
    "arm64": "aarch64-linux-gnu-gcc-12",
    "armhf": "arm-linux-gnueabihf-gcc-12",
    "ppc64el": "powerpc64le-linux-gnu-gcc-12",
    "s390x": "s390x-linux-gnu-gcc-12",
}
#: As readelf calls the machine of a module for it.
MACHINES = {"amd64": "X86-64", "arm64": "AArch64", "armhf": "ARM", "ppc64el": "PowerPC64", "s390x": "S/390"}


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_module_is_built_for_each_architecture(run: Runner, arch: str) -> None:
    if not shutil.which(ARCHITECTURES[arch]):
        pytest.skip(f"{ARCHITECTURES[arch]} is not installed (group long of debian-packages.txt)")
    ran = run("kernel-module", {"source": str(ROOT / "examples/lab/heartbeat")}, arch=arch)
    assert ran.result.state == "passed", ran.log.read_text()
    output = ran.result.output
    assert output["exported"] == 1
    assert output["modules"]["heartbeat"]["vermagic"].startswith(output["release"] + " ")
    module = ran.folder_of("modules") / "heartbeat.ko"
    shown = subprocess.run(["readelf", "-h", module], capture_output=True, text=True, check=True).stdout
    assert MACHINES[arch] in shown
    # The same bytes in another place, but for times and place: laptop and lab say the same.
    again = run("kernel-module", {"source": str(ROOT / "examples/lab/heartbeat")}, place="an/other/place", arch=arch)
    assert again.result.comparable() == ran.result.comparable()


@pytest.mark.long
def test_a_change_of_a_module_is_seen_by_warnings_and_kabi(run: Runner, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "examples/lab/heartbeat", source)
    before = run("kernel-module", {"source": "source"}, place="before")
    assert before.result.state == "passed", before.log.read_text()
    header = source / "heartbeat.h"
    header.write_text(header.read_text().replace("beats;", "beats;\n\tunsigned int missed;"))
    code = source / "heartbeat.c"
    code.write_text(code.read_text().replace("{\n\tstate.beats++", "{\n\tint forgotten;\n\n\tstate.beats++"))
    after = run("kernel-module", {"source": "source"}, place="after")
    assert after.result.state == "passed", after.log.read_text()

    logs = {"log": str(after.files["log"]), "base": str(before.files["log"])}
    warned = run("new-warnings", logs, place="warnings").result
    assert (warned.state, warned.output["new"]) == ("failed", 1)
    files = {"symvers": after, "base": before}
    given = {key: str(ran.files["symvers"]) for key, ran in files.items()}
    given |= {"modules": str(after.folder_of("modules")), "base_modules": str(before.folder_of("modules"))}
    kabi = run("kabi", given, place="kabi").result
    assert kabi.output["changed"] == ["heartbeat_read"]
    assert kabi.output["abidiff"] in ("changed", "incompatible", "not installed")
    if shutil.which("abidiff"):
        assert kabi.output["abidiff"] != "not installed"
    same = run("kabi", {**given, "symvers": given["base"], "modules": given["base_modules"]}, place="kabi").result
    assert same.state == "passed" and same.output["broken"] is False


# -- the whole graph -------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "driver"
    subprocess.run([ROOT / "examples/lab/make-repository.sh", folder], check=True, capture_output=True)
    return folder


def graph_of(repository: Path, branch: str, *, boot: bool = False) -> Graph:
    given = {"repository": str(repository), "branch": branch}
    graph = read_graph(ROOT / "examples/lab/kernel-module.yaml", given)
    left_out = set() if boot else {"build-virtual", "boot"}
    if not shutil.which(ARCHITECTURES["arm64"]):
        left_out |= {"build-arm64"}
    steps = {name: use for name, use in graph.steps.items() if name not in left_out}
    if "build-virtual" in steps and "build-arm64" in left_out:
        use = steps["build-virtual"]
        steps["build-virtual"] = use.model_copy(update={"needs": tuple(n for n in use.needs if n != "build-arm64")})
    return graph.model_copy(update={"steps": steps})


def states(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    return {one.step: one.state for one in outcomes}


def test_a_conflict_stops_the_example(repository: Path, tmp_path: Path) -> None:
    found = states(run_graph(graph_of(repository, "clash", boot=True), tmp_path / "run", files_from=tmp_path))
    assert (found.pop("merge"), found.pop("conflict")) == ("passed", "failed")
    assert set(found.values()) == {"skipped"}


@pytest.mark.long
def test_what_the_merge_and_the_checks_say_decides_the_path_of_the_example(repository: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    found = states(run_graph(graph_of(repository, "faster"), good, files_from=tmp_path))
    assert found.pop("conflict") == "skipped"
    assert set(found.values()) == {"passed"}, found

    graph = graph_of(repository, "louder", boot=True)
    outcomes = run_graph(graph, tmp_path / "louder", files_from=tmp_path, baseline=good)
    found = states(outcomes)
    assert (found["warnings"], found["kabi"], found["fixes"]) == ("failed", "failed", "passed")
    assert (found["build-virtual"], found["boot"]) == ("skipped", "skipped")
    output = {one.step: one.result.output for one in outcomes if one.result}
    assert output["warnings"]["new"] == 1 and output["kabi"]["changed"] == ["heartbeat_read"]

    outcomes = run_graph(graph_of(repository, "backport", boot=True), tmp_path / "back", files_from=tmp_path)
    found = states(outcomes)
    assert (found["fixes"], found["kabi"], found["boot"]) == ("failed", "passed", "skipped")


@pytest.mark.long
@pytest.mark.virtual
@pytest.mark.timeout(1800)
def test_modules_are_loaded_in_a_virtual_host_and_trouble_is_seen(run: Runner, tmp_path: Path) -> None:
    """One boot for three modules: a good one, one at which the kernel complains, one that does not want to."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "examples/lab/heartbeat", source)
    (source / "Kbuild").write_text("obj-m := heartbeat.o complains.o refuses.o\n")
    head = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'
    for name, body in (("complains", "WARN_ON(1); return 0;"), ("refuses", "return -ENODEV;")):
        init = f"static int __init start(void) {{ {body} }}\nstatic void __exit end(void) {{}}\n"
        (source / f"{name}.c").write_text(head + init + "module_init(start);\nmodule_exit(end);\n")
    built = run("kernel-module", {"source": "source"}, place="build", release="virtual")
    assert built.result.state == "passed", built.log.read_text()
    ran = run("boot-module", {"modules": str(built.folder_of("modules"))}, place="boot")
    output = ran.result.output
    assert output["booted"] is True, ran.log.read_text()
    assert output["release"] == built.result.output["release"]
    found = output["modules"]
    assert found["heartbeat"] == {"loaded": True, "unloaded": True}
    assert found["complains"]["loaded"] is True
    assert found["refuses"]["loaded"] is False and "No such device" in found["refuses"]["why"]
    assert output["trouble"] >= 1
    assert ran.result.state == "failed"
    assert "heartbeat: every 100 ms" in ran.files["dmesg"].read_text()
    # Its state lay in the step's folder, and no process of it is left.
    assert not list((tmp_path / "boot/work").glob(".local/state/evenkeel/virtual/*"))


@pytest.mark.long
@pytest.mark.virtual
@pytest.mark.timeout(1800)
def test_a_measurement_in_a_virtual_host_is_marked(run: Runner) -> None:
    ran = run("measure", {}, time="3s")
    output = ran.result.output
    assert output.get("latencies"), ran.log.read_text()
    assert output["deadlines"] == "kept"  # none was asked for
    assert ran.result.state == "passed"
    for one in output["latencies"]:
        assert one["samples"] > 10
        assert (one.get("note") == EMULATION_NOTE) is output["emulated"]
