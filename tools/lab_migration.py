"""Make the lab's one migration anew from its tables: ``python -m tools.lab_migration``.

Only while nothing was released; from then on a change of the tables is a further step beside it, written by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from evenkeel.lab import migrate

VERSIONS = Path(migrate.__file__).parent / "migrations" / "versions"
_WHAT = "All tables of the lab, as they begin."


def make(folder: Path = VERSIONS) -> Path:
    """Returns the file, which is ``0001_tables.py`` in ``folder``."""
    for old in folder.glob("0001_*.py"):
        old.unlink()
    config = migrate._config()
    config.set_main_option("version_locations", str(folder))
    with create_engine("sqlite://").connect() as connection:
        config.attributes["connection"] = connection
        command.revision(config, _WHAT, autogenerate=True, rev_id="0001", head="base", version_path=str(folder))
    made = next(folder.glob("0001_*.py"))
    path = made.rename(folder / "0001_tables.py")
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--quiet", "--fix", "--unsafe-fixes", "--select", "I,F401", str(path)], check=True)
    subprocess.run([*ruff, "format", "--quiet", str(path)], check=True)
    return path


if __name__ == "__main__":
    print(make())
