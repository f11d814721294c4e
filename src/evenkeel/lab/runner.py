"""Run one step: a fresh folder, its inputs in it, the command held within limits, outputs and artifacts collected.

The same for an agent of the lab and for ``evenkeel lab run`` on a developer's machine; what differs is where inputs
come from (``fetch``) and where artifacts go afterwards (:attr:`Ran.files`).  Knows no database and no server.

The folder: ``in/`` (inputs), ``out/`` (output.json, and what becomes artifacts), ``lib/`` (scripts of the definition),
``work/`` (where the command starts, its HOME), ``tmp/``, ``log``, and afterwards ``artifacts/`` (by their names).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from evenkeel.documents.base import digest
from evenkeel.documents.result import Artifact, Cause, Place, Result, State, Times, Warned
from evenkeel.errors import EvenkeelError
from evenkeel.lab import keepers
from evenkeel.lab.step import ArtifactWish, Input, Step, Use
from evenkeel.lab.warnings import warnings_in

#: A folder as one file: an artifact of this kind is a folder again when it is the input of another step.
FOLDER = "application/vnd.evenkeel.folder+tar"
MAX_OUTPUT = 1 << 20
GRACE_S = 5.0
#: How often somebody who cancels is looked for while inputs are brought.
LOOK_S = 0.2
_CHUNK = 1 << 20
#: Where programs are looked for, whatever the agent's own PATH is.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


#: Settings of whoever runs this must not change what comes out; a URL must not run a program (git-config(1),
#: protocol.allow); the repository may belong to somebody else (safe.directory).
_GIT_ENVIRONMENT = {
    "PATH": PATH,
    "LANG": "C.UTF-8",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}


class NoInput(EvenkeelError):
    """An input cannot be had.  Becomes the cause ``input`` of the result."""


#: (content's SHA-256, where to write it): raises NoInput or OSError.
Fetch = Callable[[str, Path], None]


@dataclass(frozen=True)
class Ran:
    """``files``: name of an artifact -> the file with it, in the step's folder.  ``log``: all that it said."""

    result: Result
    files: dict[str, Path]
    log: Path

    def folder_of(self, name: str) -> Path:
        """An artifact that is a folder, as a folder, beside its file."""
        target = self.files[name].with_suffix(".d")
        if not target.exists():
            shutil.copyfile(self.files[name], target)
            unpack(target)
        return target


@dataclass
class Run:
    """A step that is to run, or runs.  ``machine``: what the command finds as ``$MACHINE_NAME`` and the like."""

    use: Use
    folder: Path
    fetch: Fetch | None = None
    files_from: Path | None = None  # where `file` inputs are looked up; None: they are refused
    agent: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)
    time_ns: int | None = None  # what was learned, where the definition has no limit of its own
    on_log: Callable[[bytes], None] | None = None
    clock: Callable[[], int] = time.time_ns
    cgroup: str | None = None  # of the agent, delegated (hold.delegated_cgroup)
    keep: keepers.Keep = keepers.alone

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()
        self._order: IO[bytes] | None = None
        self._inputs: dict[str, str] = {}
        self._until: float | None = None  # by time.monotonic(): inputs and command share the time that the step has

    def cancel(self) -> None:
        """End it, politely for some seconds.  From any thread, at any time."""
        self._cancelled.set()
        with contextlib.suppress(OSError, ValueError):
            if self._order is not None:
                self._order.write(b"cancel\n")
                self._order.flush()

    def run(self) -> Ran:
        """Run it to its end.  What goes wrong with the step is in the result, never an exception.

        Raises OSError when the folder cannot be made at all."""
        started, began_ns = self.clock(), time.monotonic_ns()
        step = self.use.definition()
        if limit := step.limits.time or self.time_ns:
            self._until = time.monotonic() + limit / 1e9
        _fresh(self.folder)
        (self.folder / "log").touch()
        held: dict[str, Any] = {}
        cause: Cause = ""
        detail = ""
        try:
            self._prepare(step)
            if self._cancelled.is_set():
                cause, detail = "cancelled", "cancelled before it began"
            else:
                held = self._hold(step)
                cause, detail = _cause(held, step, self.time_ns)
        except _Stopped as stopped:
            cause, detail = _cause({"exit": None, "cause": stopped.cause}, step, self.time_ns)
        except NoInput as error:
            cause, detail = "input", str(error)
        except _NoTool as error:
            cause, detail = "tool", error.message
        output: dict[str, Any] = {}
        artifacts: list[Artifact] = []
        files: dict[str, Path] = {}
        problems: list[tuple[Cause, str]] = []
        if held:
            output, wrong = _output(self.folder / "out" / "output.json")
            problems += [("output", wrong)] if wrong else []
            for name, wish in sorted(step.artifacts.items()):
                try:
                    artifact, file = _collect(name, wish, self.folder)
                except _NoArtifact as error:
                    problems += [("artifact", error.message)] * (not wish.optional or error.wrong)
                else:
                    artifacts.append(artifact)
                    files[name] = file
        if not cause and problems:
            cause, detail = problems[0][0], "; ".join(text for _, text in problems)
        warned: tuple[Warned, ...] | None = None
        if step.warnings is not None and step.warnings in files:
            roots = [str(self.folder / name) for name in ("in", "out", "work", "tmp", "lib")]
            warned = warnings_in(files[step.warnings].read_text(errors="replace"), roots)
        result = Result(
            step=step.kind,
            same=self.use.same_key(),
            step_sha256=self.use.sha256(),
            settings=self.use.set,
            inputs=self._inputs,
            state=_state(cause),
            cause=cause,
            detail=detail,
            exit=held.get("exit"),
            output=output,
            artifacts=tuple(artifacts),
            warnings=warned,
            times=Times(
                started_ns=started,
                ended_ns=started + time.monotonic_ns() - began_ns,  # its length is true though the clock was set
                cpu=held.get("cpu_ns"),
                memory=held.get("memory"),
            ),
            place=Place(
                host=platform.node(),
                agent=self.agent,
                machine=self.machine.get("name", ""),
                kernel=platform.release(),
                isolation=step.isolation,
                limits=tuple(held.get("limits", ())),
            ),
        )
        return Ran(result, files, self.folder / "log")

    # -- before ---------------------------------------------------------------------------------------------------

    def _prepare(self, step: Step) -> None:
        for name, text in dict(step.scripts).items() if isinstance(step.scripts, dict) else ():
            script = self.folder / "lib" / name
            script.write_text(text)
            script.chmod(0o755)
        tools = [*step.tools, *(["bwrap"] if step.isolation == "bubblewrap" else [])]
        if missing := [tool for tool in tools if not shutil.which(tool, path=PATH)]:
            raise _NoTool(f"not installed here: {', '.join(missing)}")
        for name, wanted in sorted(self.use.inputs.items()):
            self._go_on()
            target = self.folder / "in" / name
            try:
                told = self._input(wanted, target)
            except (OSError, tarfile.TarError) as error:
                raise NoInput(f"input {name}: {error}") from None
            if told is not None:
                self._inputs[name] = told
            elif not wanted.optional:
                raise NoInput(f"input {name}: there is none")

    def _input(self, wanted: Input, target: Path) -> str | None:
        """Put an input in its place; what it is, as SHA-256 or commit.  None: it may be left out, and is."""
        if wanted.json_text is not None:
            target.write_text(wanted.json_text)
            return hashlib.sha256(wanted.json_text.encode()).hexdigest()
        if wanted.content is not None:
            if self.fetch is None:
                raise NoInput("contents can be had from a lab only")
            self.fetch(wanted.content, target)
            found = sha256_of(target)
            if found != wanted.content:
                raise NoInput(f"{wanted.content} came as {found}")
            if wanted.media == FOLDER:
                unpack(target)
            return found
        if wanted.git is not None:
            return self._clone(wanted.git, wanted.ref, target)
        if wanted.file is not None:
            if self.files_from is None:
                raise NoInput(f"{wanted.file} is a file of whoever submitted this, and was not sent along")
            source = self.files_from / wanted.file
            if wanted.optional and not source.exists():
                return None
            if source.is_dir():
                packed = target.with_name(f".{target.name}.tar")
                pack(source, packed)
                shutil.move(packed, target)
                found = sha256_of(target)
                unpack(target)
                return found
            shutil.copyfile(source, target)
            return sha256_of(target)
        if wanted.source() is None:
            return None
        raise NoInput("it comes from another step: give it with --input, or run the whole graph")

    def _go_on(self) -> None:
        """Raises _Stopped when somebody cancelled the step, or its time is over."""
        if self._cancelled.is_set():
            raise _Stopped("cancelled")
        if self._until is not None and time.monotonic() > self._until:
            raise _Stopped("time")

    def _clone(self, url: str, ref: str, target: Path) -> str:
        """Clone with history; the commit that ``ref`` is.  Raises NoInput with git's own words, and _Stopped."""
        if url.startswith("-") or ref.startswith("-"):
            raise NoInput(f"{url} {ref}: neither may begin with a dash")
        self._git("clone", "--quiet", "--no-checkout", "--", url, str(target))
        for name in (f"refs/remotes/origin/{ref}", ref):
            try:
                commit = self._git("-C", str(target), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            except NoInput:
                continue
            self._git("-C", str(target), "checkout", "--quiet", "--detach", commit)
            return commit
        raise NoInput(f"git: {url} has no {ref}")

    def _git(self, *words: str) -> str:
        """What git prints.  A server that does not answer holds neither the step beyond its time nor who cancels it."""
        process = subprocess.Popen(
            ["git", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_GIT_ENVIRONMENT | {"HOME": os.environ.get("HOME", "/")},
            start_new_session=True,
        )
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    self._go_on()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode:
            said = err.strip().splitlines()
            raise NoInput(f"git {words[0]}: {said[-1] if said else 'failed'}")
        return out.strip()

    # -- the command ----------------------------------------------------------------------------------------------

    def _hold(self, step: Step) -> dict[str, Any]:
        folder = self.folder
        argv = ["bash", "-euo", "pipefail", "-c", step.command] if isinstance(step.command, str) else [*step.command]
        env = self._environment(step)
        if step.isolation == "bubblewrap":
            argv = [*_bubblewrap(folder), *argv]
        orders = {
            "argv": argv,
            "env": env,
            "cwd": str(folder / "work"),
            "log": str(folder / "log"),
            "folder": str(folder),
            "time_s": max(0.001, self._until - time.monotonic()) if self._until is not None else None,
            "memory": step.limits.memory,
            "disk": step.limits.disk,
            "cpus": step.limits.cpus,
            "cgroup": self.cgroup,
            "grace_s": GRACE_S,
        }
        with self.keep(json.dumps(orders)) as (order, report_from):
            self._order = order
            if self._cancelled.is_set():  # it came between the look before and now
                self.cancel()
            ended = threading.Event()
            follower = threading.Thread(target=self._follow, args=(ended,), daemon=True)
            if self.on_log:
                follower.start()
            try:
                answer = report_from.read()
            finally:
                self._order = None
                ended.set()
                if self.on_log:
                    follower.join()
        if not answer:
            return {"exit": None, "cause": "agent", "limits": []}  # somebody killed the keeper
        report: dict[str, Any] = json.loads(answer)
        return report

    def _environment(self, step: Step) -> dict[str, str]:
        folder = self.folder
        jobs = step.limits.cpus or len(os.sched_getaffinity(0))
        return {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "HOME": str(folder / "work"),
            "TMPDIR": str(folder / "tmp"),
            "IN": str(folder / "in"),
            "OUT": str(folder / "out"),
            "LIB": str(folder / "lib"),
            "JOBS": str(max(1, math.floor(jobs))),
            # What all steps of a machine share to be quicker (headers, images): it must not change what comes out.
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            # The Python that has evenkeel, for steps that are written in it.
            "PYTHON": sys.executable,
            **{f"SET_{name.upper()}": value for name, value in self.use.set.items()},
            **{f"MACHINE_{name.upper()}": value for name, value in self.machine.items()},
            **step.environment,
        }

    def _follow(self, ended: threading.Event) -> None:
        """Hand on what the log gains, as it comes."""
        assert self.on_log
        with (self.folder / "log").open("rb") as stream:
            while True:
                last = ended.is_set()
                while chunk := stream.read(_CHUNK):
                    self.on_log(chunk)
                if last:
                    return
                ended.wait(0.1)


class _Stopped(Exception):
    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


class _NoTool(EvenkeelError):
    pass


class _NoArtifact(EvenkeelError):
    def __init__(self, message: str, *, wrong: bool = False) -> None:
        super().__init__(message)
        self.wrong = wrong  # it is there, and cannot be one


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("in", "out", "lib", "work", "tmp", "artifacts"):
        (folder / name).mkdir(parents=True)


def _bubblewrap(folder: Path) -> list[str]:
    """The system read-only, its own folder, no network, no other processes."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in ("/usr", "/etc", "/opt", "/var/lib/dpkg", sys.prefix, sys.base_prefix):
        words += ["--ro-bind-try", path, path]
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if Path(path).is_symlink():
            words += ["--symlink", str(Path(path).readlink()), path]
        else:
            words += ["--ro-bind-try", path, path]
    # Each is a mount, which nobody inside can put a link in place of; log and artifacts are not seen at all.
    for how, names in (("--bind", ("out", "work", "tmp")), ("--ro-bind", ("in", "lib"))):
        for name in names:
            words += [how, str(folder / name), str(folder / name)]
    return [*words, "--chdir", str(folder / "work"), "--"]


def _cause(held: Mapping[str, Any], step: Step, learned_ns: int | None) -> tuple[Cause, str]:
    code = held["exit"]
    match held["cause"]:
        case "time":
            limit = (step.limits.time or learned_ns or 0) / 1e9
            return "time", f"took longer than {limit:g} s"
        case "memory":
            return "memory", f"used more memory than {step.limits.memory} B"
        case "disk":
            return "disk", f"its folder grew beyond {step.limits.disk} B"
        case "cancelled":
            return "cancelled", "cancelled"
        case "agent":
            return "agent", "its keeper was killed"
    if code != 0:
        return "exit", f"ended by signal {-code}" if code < 0 else f"ended with {code}"
    return "", ""


def _state(cause: Cause) -> State:
    known: dict[Cause, State] = {"": "passed", "time": "timed-out", "cancelled": "cancelled", "agent": "lost"}
    return known.get(cause, "failed")


def _output(path: Path) -> tuple[dict[str, Any], str]:
    """The output of the command, and what is wrong with it."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return {}, "output.json is no file"
        if path.stat().st_size > MAX_OUTPUT:
            return {}, f"output.json is larger than {MAX_OUTPUT >> 20} MiB"
        data = json.loads(path.read_text(), parse_constant=_refuse)
        digest(data)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"output.json is no JSON: {error}"
    return (data, "") if isinstance(data, dict) else ({}, "output.json is no JSON object")


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")


def _collect(name: str, wish: ArtifactWish, folder: Path) -> tuple[Artifact, Path]:
    out = (folder / "out").resolve()
    kept = folder / "artifacts" / name
    path = out / wish.path
    if not path.exists():
        raise _NoArtifact(f"there is no {wish.path} in $OUT, for the artifact {name}")
    if not path.resolve().is_relative_to(out):
        raise _NoArtifact(f"{wish.path} leads out of $OUT", wrong=True)
    path = path.resolve()
    if path.is_dir():
        pack(path, kept)
        return _artifact(name, kept, FOLDER, wish.varies), kept
    if not path.is_file():
        raise _NoArtifact(f"{wish.path} is neither a file nor a folder", wrong=True)
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        shutil.copyfile(path, kept)
    return _artifact(name, kept, wish.media, wish.varies), kept


def _artifact(name: str, path: Path, media: str, varies: bool) -> Artifact:
    return Artifact(name=name, sha256=sha256_of(path), size=path.stat().st_size, media=media, varies=varies)


# -- files and folders --------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack(folder: Path, target: Path) -> None:
    """A folder as a tar file: sorted, without times and owners, so that the same files give the same bytes."""

    def nameless(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, arcname=str(path.relative_to(folder)), recursive=False, filter=nameless)


def unpack(path: Path) -> None:
    """Make a folder out of the tar file that lies in its place.  Refuses what would lie outside (OSError, TarError)."""
    packed = path.with_name(f".{path.name}.tar")
    path.rename(packed)
    path.mkdir()
    with tarfile.open(packed) as tar:
        tar.extractall(path, filter="data")
    packed.unlink()
