"""Write the lab's REST contract anew: ``python -m tools.lab_openapi`` (part of ``make reference``).

Refuses what would break programs that keep to the contract that is there; ``--breaking`` writes it all the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tools.lab_breaking import breaking

from evenkeel.lab.api.app import create_app
from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Store, sqlite_url

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "lab-openapi.json"


def contract() -> str:
    """As text.  The version of Evenkeel is left out: it would change the contract with every release."""
    with tempfile.TemporaryDirectory() as folder, Store(sqlite_url(Path(folder) / "lab.db")) as store:
        made = create_app(Lab(Path(folder), store), who=lambda _: None).openapi()
    made["info"]["version"] = "1"
    return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    made = contract()
    breaks = breaking(json.loads(PAGE.read_text(encoding="utf-8")), json.loads(made)) if PAGE.exists() else []
    if breaks and arguments != ["--breaking"]:
        print(f"{PAGE.name} is not written: this breaks programs that keep to it", file=sys.stderr)
        print(*(f"  {one}" for one in breaks), sep="\n", file=sys.stderr)
        print("add what is new beside the old; if it must be, run this with --breaking", file=sys.stderr)
        return 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
