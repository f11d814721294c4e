"""Hold one command: start it, keep it within its limits, and leave none of its processes behind.

Runs as a process of its own (``python -I -S hold.py ORDERS``), so that a killed agent takes its step with it: the
standard input is a pipe that only the agent holds open, and its end ends everything.  Without orders it waits: each
pair of pipes that comes over its standard input becomes the input and output of a keeper, split off, that reads its
orders (after their length in four bytes) and says "+" before all else (:mod:`evenkeel.lab.keepers`).  Standard library
only, because each agent, or each step, pays for the start of it.

Orders (JSON): ``argv``, ``env``, ``cwd``, ``log`` (file), ``folder`` (whose size counts),
``time_s``, ``memory``, ``disk`` (bytes), ``cpus`` and ``cgroup`` (folder of a delegated cgroup v2), each or null;
``grace_s`` between the polite and the hard signal.
Standard output: one JSON object when all is over: ``exit``, ``cause``, ``cpu_ns``, ``memory``, ``limits``,
``left`` (processes that outlived the command, or could not be ended at all).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing alone takes 12 ms
if TYPE_CHECKING:
    from typing import Any

PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.1
DISK_LOOK_S = 1.0
#: A process that the kernel cannot end (a dead disk, a dead server) is left behind after so long, and told.
LAST_S = 20.0
PAGE = os.sysconf("SC_PAGE_SIZE")
LIBC = ctypes.CDLL(None, use_errno=True)


class NoCgroup(Exception):
    """Why limits are watched instead."""


def delegated_cgroup(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> str:
    """The cgroup that systemd left to this process (``Delegate=yes``), made ready for a cgroup below it for each step.

    Whoever is in it moves to a child first: a cgroup v2 that gives controllers to children holds no processes itself
    (Linux, Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").  Raises NoCgroup, and has
    changed nothing then unless the kernel refused what was delegated.
    """
    if not os.path.exists(f"{root}/cgroup.controllers"):
        raise NoCgroup("this machine has no cgroup v2 at " + root)
    try:
        with open(own) as stream:
            here = root + next((line[3:].rstrip("\n") for line in stream if line.startswith("0::")), "").rstrip("/")
        # An agent that was started anew finds itself in the child that the one before made.
        for path in (here, *([os.path.dirname(here)] if os.path.basename(here) == "main" else [])):
            # systemd marks what it delegated (systemd.resource-control(5)); others' cgroups are not ours to change.
            if {"user.delegate", "trusted.delegate"} & set(os.listxattr(path)):
                break
        else:
            raise NoCgroup("it was not started by systemd with Delegate=yes")
        with open(f"{path}/cgroup.controllers") as stream:
            if not {"cpu", "memory"} <= set(stream.read().split()):
                raise NoCgroup("systemd left it a cgroup without the controllers cpu and memory")
        os.makedirs(f"{path}/main", exist_ok=True)
        with open(f"{path}/cgroup.procs") as stream:
            pids = stream.read().split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError), open(f"{path}/main/cgroup.procs", "w") as stream:
                stream.write(pid)
        with open(f"{path}/cgroup.subtree_control", "w") as stream:
            stream.write("+cpu +memory")
        for name in os.listdir(path):
            if name.startswith("step-"):  # of a keeper that was killed; one in use cannot be removed
                with contextlib.suppress(OSError):
                    os.rmdir(f"{path}/{name}")
    except OSError as error:
        raise NoCgroup(f"{error.filename or own}: {error.strerror}") from None
    return path


class Cgroup:
    """A cgroup of this step below a delegated one."""

    def __init__(self, parent: str, memory: int | None, cpus: float | None) -> None:
        self.path = f"{parent}/step-{os.getpid()}"
        os.mkdir(self.path)
        try:
            if memory:
                self.write("memory.max", memory)
                self.write("memory.oom.group", 1)
                with contextlib.suppress(OSError):  # a machine without swap has no such file
                    self.write("memory.swap.max", 0)
            if cpus:
                self.write("cpu.max", f"{max(1000, round(cpus * 100000))} 100000")
        except OSError:
            self.remove()
            raise

    def write(self, name: str, value: object) -> None:
        with open(f"{self.path}/{name}", "w") as stream:
            stream.write(str(value))

    def read(self, name: str) -> str:
        with open(f"{self.path}/{name}") as stream:
            return stream.read()

    def out_of_memory(self) -> bool:
        words = self.read("memory.events").split()
        return int(words[words.index("oom_kill") + 1]) > 0

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # Linux before 5.14
            self.write("cgroup.kill", 1)

    def remove(self) -> None:
        """With what the step made below it.  Whoever was killed in it may be there for an instant more."""
        for _ in range(100):
            try:
                for path, _, _ in os.walk(self.path, topdown=False):
                    os.rmdir(path)
            except OSError:
                time.sleep(0.02)
            else:
                return


def descendants() -> list[int]:
    """Process ids of all that this process started, and what those started; orphans come to us (subreaper)."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stream:
                # The name in brackets may hold anything, brackets too.
                parents[int(name)] = int(stream.read().rpartition(b")")[2].split()[1])
    found, todo = [], [os.getpid()]
    while todo:
        above = todo.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found += below
        todo += below
    return found


def at_a_glance() -> list[int]:
    """:func:`descendants` without looking at every process of the machine, ten times a second for each step.

    One that just comes or goes may be missed (proc(5), /proc/pid/task/tid/children), so it is for measuring only."""
    if not os.path.exists("/proc/thread-self/children"):  # a kernel without CONFIG_PROC_CHILDREN
        return descendants()
    found, todo = [], [os.getpid()]
    while todo:
        above = todo.pop()
        with contextlib.suppress(OSError):  # it ended
            for thread in os.listdir(f"/proc/{above}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{above}/task/{thread}/children", "rb") as stream:
                    below = [int(word) for word in stream.read().split()]
                    found += below
                    todo += below
    return found


def childless() -> bool:
    """Nothing is left: who outlives the command becomes a child of ours (subreaper)."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def resident(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm") as stream:
            words = stream.read().split()
            total += (int(words[1]) - int(words[2])) * PAGE  # without what is shared with a file
    return total


def size(folder: str) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{place}/{name}").st_blocks * 512
    return total


def signal_all(number: int) -> list[int]:
    pids = descendants()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return pids


def reap() -> dict[int, int]:
    """Collect whoever ended; {pid: exit}.  Orphans that came to us are among them."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def start(orders: dict[str, Any], cgroup: Cgroup | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if cgroup:
            cgroup.write("cgroup.procs", 0)
        elif orders["cpus"]:
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, allowed[-max(1, int(-(-orders["cpus"] // 1))) :])
        null = os.open("/dev/null", os.O_RDONLY)
        log = os.open(orders["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.chdir(orders["cwd"])
        os.execvpe(orders["argv"][0], orders["argv"], orders["env"])
    except OSError as error:
        os.write(2, f"cannot start {orders['argv'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def read(number: int) -> bytes:
    """So many bytes of the standard input.  Raises EOFError."""
    data = b""
    while len(data) < number:
        piece = os.read(0, number - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def wait_for_orders() -> None:
    """Until the agent is gone: split off a keeper for each pair of pipes that it hands over."""
    import socket  # 15 ms that a keeper of its own need not pay

    line = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a keeper ended
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        word, pipes, _, _ = socket.recv_fds(line, 1, 2)
        if not word:
            return
        pid = -1
        with contextlib.suppress(OSError):  # out of processes: the agent sees that the pipes are closed
            pid = os.fork() if len(pipes) == 2 else -1  # else out of file descriptors
        if pid == 0:
            try:
                os.setsid()
                line.close()
                for own, pipe in enumerate(pipes):
                    os.dup2(pipe, own)
                    os.close(pipe)
                orders = json.loads(read(int.from_bytes(read(4), "big")))
                os.write(1, b"+")
                main(orders)
            except EOFError:  # the agent was killed before it had said what
                pass
            except BaseException:  # noqa: BLE001  the agent gets no report; the words are for its log
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(0)
        for pipe in pipes:
            os.close(pipe)


def main(orders: dict[str, Any]) -> None:
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A signal to the whole group, as from Ctrl-C in a terminal, must not end the keeper before what it keeps.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    cgroup: Cgroup | None = None
    limits: list[str] = []
    if orders["cgroup"]:
        try:
            cgroup = Cgroup(orders["cgroup"], orders["memory"], orders["cpus"])
        except OSError as error:
            limits.append(f"no cgroup: {error.strerror}")
    how = "cgroup" if cgroup else "watched"
    limits += ["memory: " + how] * bool(orders["memory"])
    limits += ["cpus: " + ("cgroup" if cgroup else "affinity")] * bool(orders["cpus"])
    limits += ["disk: watched"] * bool(orders["disk"]) + ["time: clock"] * bool(orders["time_s"])
    began = time.monotonic()
    pid = start(orders, cgroup)
    cause, most = "", 0
    exit_code: int | None = None
    kill_at: float | None = None  # when politeness ends
    next_disk = began
    while exit_code is None:
        ready, _, _ = select.select([0, wake_read], [], [], LOOK_S)
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        exit_code = reap().get(pid)
        if exit_code is not None:
            break
        now = time.monotonic()
        wanted = ""
        if 0 in ready:
            word = os.read(0, 64)
            wanted = "cancelled"
            if not word:  # the agent is gone: nobody waits for a polite end
                cause, kill_at = "cancelled", now
        if orders["time_s"] and now - began > orders["time_s"]:
            wanted = "time"
        used = resident(at_a_glance())
        most = max(most, used)
        if orders["memory"] and not cgroup and used > orders["memory"]:
            wanted, cause, kill_at = "memory", cause or "memory", now
        if orders["disk"] and now >= next_disk:
            if size(orders["folder"]) > orders["disk"]:
                wanted, cause, kill_at = "disk", cause or "disk", now
            # A folder of a million files takes long to look at: never more than a tenth of the time.
            next_disk = now + max(DISK_LOOK_S, 10 * (time.monotonic() - now))
        if wanted and not cause:
            cause, kill_at = wanted, now + orders["grace_s"]
            signal_all(signal.SIGTERM)
        if kill_at is not None and now >= kill_at:
            if cgroup:
                cgroup.kill()
            signal_all(signal.SIGKILL)
    # What it left running goes too: a later step must not meet it.
    left = 0
    until = time.monotonic() + LAST_S
    while True:
        if childless():
            break
        if cgroup:
            cgroup.kill()
        remaining = signal_all(signal.SIGKILL)
        left = max(left, len(remaining))
        reap()
        if not remaining or time.monotonic() > until:
            break
        time.sleep(0.01)
    if cgroup:
        with contextlib.suppress(OSError, ValueError):
            most = max(most, int(cgroup.read("memory.peak")))
        with contextlib.suppress(OSError, ValueError):
            if not cause and cgroup.out_of_memory():
                cause = "memory"
        cgroup.remove()
    if not cause and orders["disk"] and size(orders["folder"]) > orders["disk"]:
        cause = "disk"  # it was quicker than the watch
    spent = os.times()
    report = {
        "exit": exit_code,
        "cause": cause,
        "cpu_ns": round((spent.children_user + spent.children_system) * 1e9),
        "memory": most,
        "limits": limits,
        "left": left,
    }
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(report).encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1])) if len(sys.argv) > 1 else wait_for_orders()
