"""What the kill tests kill: a dispatcher over a database in a folder, without pages.  ``python -m`` with the folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from evenkeel.lab import dispatching
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Store, sqlite_url

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Store(sqlite_url(folder / "lab.db")) as store, dispatching.running(Lab(folder, store)):
        print("up", flush=True)
        while True:
            time.sleep(3600)
