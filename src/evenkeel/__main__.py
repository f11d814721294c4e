"""``python -m evenkeel``: the same as the program ``evenkeel``."""

from __future__ import annotations

import sys

from evenkeel.cli import main

if __name__ == "__main__":
    sys.exit(main())
