"""Step new-warnings: which warnings of LOG are not in BASE?  new_warnings.py LOG BASE ALLOWED OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evenkeel.lab.warnings import new_warnings, warnings_in


def main() -> int:
    log, base, allowed, out = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    now = warnings_in(log.read_text(errors="replace"))
    before = warnings_in(base.read_text(errors="replace")) if base.exists() else now
    new, gone = new_warnings(now, before), new_warnings(before, now)
    lines = [f"{one.file or one.tool}: {one.text}" + (f" ({one.times} times)" if one.times > 1 else "") for one in new]
    (out / "new.txt").write_text("".join(line + "\n" for line in lines))
    answer = {
        "base": base.exists(),
        "warnings": sum(one.times for one in now),
        "new": sum(one.times for one in new),
        "gone": sum(one.times for one in gone),
    }
    (out / "output.json").write_text(json.dumps(answer, indent=2))
    for line in lines:
        print("new:", line)
    print(", ".join(f"{name}: {value}" for name, value in answer.items()))
    return 1 if answer["new"] > allowed else 0


if __name__ == "__main__":
    sys.exit(main())
