"""What the kill tests kill: a dispatcher over a database, and a socket by which steps are sent in, without pages.

``python -m tests.lab.killed_service FOLDER [URL]``: SQLite in the folder, or the database at the URL.  On
``submit.sock`` in the folder: a graph as a line of JSON; what comes back is its number, once that is on disk.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import sys
import threading
from pathlib import Path

from evenkeel.lab import active, dispatching, submissions
from evenkeel.lab.actor import with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.step import graph_of
from evenkeel.lab.store import Away, Store, sqlite_url


def serve(lab: Lab) -> socketserver.ThreadingUnixStreamServer:
    ann = with_roles("ann", ["user"])

    class Submit(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                try:
                    answer = str(submissions.submit(lab, ann, graph_of(json.loads(line))).id)
                except Away as error:
                    answer = error.message
                self.wfile.write(f"{answer}\n".encode())

    path = lab.folder / "submit.sock"
    path.unlink(missing_ok=True)
    server = socketserver.ThreadingUnixStreamServer(str(path), Submit)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main(folder: Path, url: str | None) -> None:
    with Store(url or sqlite_url(folder / "lab.db")) as store:
        lab = Lab(folder, store)
        active.wait_for(lab, "killed", print)
        with dispatching.running(lab) as part, contextlib.closing(serve(lab).socket):
            print("up", flush=True)

            def check() -> None:
                assert part.failed is None

            active.keep(lab, "killed", print, check, threading.Event())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
