"""Write the lab's REST contract anew: ``python -m tools.lab_openapi`` (part of ``make reference``)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

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


if __name__ == "__main__":
    PAGE.write_text(contract(), encoding="utf-8")
