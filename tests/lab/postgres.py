"""A real PostgreSQL of one's own, as Debian's package brings it: for long tests, and for the benchmark of the queue.

On a socket, in a folder, gone with all its data when the block ends.  Must not touch the machine's own server.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextlib.contextmanager
def postgres(folder: Path, *, durable: bool) -> Iterator[Callable[[], str]]:
    """Run it in ``folder``, which is made; calling what comes back gives the URL of a new, empty database.

    ``folder``: a path that the user postgres reaches, short: the kernel takes 107 characters for a socket.
    ``durable``: with fsync, as it comes; without it a crash of the machine loses data, and tests are quicker.
    """
    assert BIN is not None
    folder.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    user = "postgres" if as_user else pwd.getpwuid(os.geteuid()).pw_name
    data = folder / "data"
    initdb = [str(BIN / "initdb"), "-D", str(data), "-A", "trust", "-U", user, "--no-sync"]
    options = ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses="]
    options += ["-c", f"fsync={'on' if durable else 'off'}"]
    process: subprocess.Popen[bytes] | None = None
    number = 0

    def new() -> str:
        nonlocal number
        number += 1
        subprocess.run(
            [str(BIN / "createdb"), "-h", str(folder), "-U", user, f"lab{number}"], check=True, capture_output=True
        )
        return f"postgresql://{user}@/lab{number}?host={folder}"

    try:
        subprocess.run([*as_user, *initdb], check=True, capture_output=True)
        # In a session of its own: Ctrl-C in the terminal is for who runs this, who then ends it in order.
        process = subprocess.Popen(
            [*as_user, str(BIN / "postgres"), "-D", str(data), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + 60
        while (
            not list(folder.glob(".s.PGSQL.*"))
            or subprocess.run([str(BIN / "pg_isready"), "-q", "-h", str(folder)], check=False).returncode
        ):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        yield new
    finally:
        if process is not None:
            stop = [str(BIN / "pg_ctl"), "-D", str(data), "-m", "immediate", "-s", "stop"]
            subprocess.run([*as_user, *stop], check=False, timeout=30)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # it had not come so far that pg_ctl knows it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
