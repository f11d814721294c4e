"""Step kabi: which symbols are gone, changed or new?  kabi.py IN OUT

Module.symvers has a line for each symbol: its checksum over all types that it needs (CONFIG_MODVERSIONS; 0x00000000
without), its name, its module, how it is exported.  abidiff reads the types from the modules' debug information.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Bits of abidiff's exit status (its manual): error, wrong usage, a change, an incompatible change.
ABIDIFF_ERROR, ABIDIFF_CHANGE, ABIDIFF_INCOMPATIBLE = 1 | 2, 4, 8


def read(path: Path, wanted: set[str] | None) -> dict[str, tuple[str, str]]:
    """Name -> (checksum, how it is exported)."""
    found: dict[str, tuple[str, str]] = {}
    for line in path.read_text().splitlines():
        words = line.split("\t")
        if len(words) >= 4 and (wanted is None or words[1] in wanted):
            found[words[1]] = (words[0], words[3])
    return found


def symbols(old: dict[str, tuple[str, str]], new: dict[str, tuple[str, str]]) -> dict[str, list[str]]:
    both = old.keys() & new.keys()
    return {
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in both if old[name][0] != new[name][0]),
        "exported_otherwise": sorted(name for name in both if old[name][1] != new[name][1]),
        "added": sorted(new.keys() - old.keys()),
    }


def readable(module: Path, folder: Path) -> Path:
    """A copy that libabigail can read.

    Since Linux 5.19 the checksums of a module are no absolute symbols any more ("kbuild: link symbol CRCs at final
    link"), and libabigail 2.2 of Debian 12 aborts at them (symtab_reader::symtab::load_).  They are compared from
    Module.symvers anyway; here they get another name, of the same length, in the table of strings.
    """
    folder.mkdir()
    copy = folder / module.name
    copy.write_bytes(module.read_bytes().replace(b"\0__crc_", b"\0__was_"))
    return copy


def abidiff(old: Path, new: Path, report: list[str]) -> str:
    """same, changed, incompatible; or why it was not compared."""
    if not old.is_dir() or not new.is_dir():
        return "not asked for"
    if not shutil.which("abidiff"):
        return "not installed"
    worst = "same"
    for module in sorted(old.glob("*.ko")):
        if not (new / module.name).exists():
            continue  # its symbols are gone, and told as such
        with tempfile.TemporaryDirectory() as folder:
            sides = [readable(module, Path(folder) / "old"), readable(new / module.name, Path(folder) / "new")]
            done = subprocess.run(["abidiff", *sides], capture_output=True, text=True, check=False)
        if done.returncode & ABIDIFF_ERROR or done.returncode < 0:
            report.append(f"abidiff of {module.name} failed: {done.stderr.strip()}")
            return "failed"
        if done.returncode:
            report.append(f"abidiff of {module.name}:\n{done.stdout.strip()}")
        if done.returncode & ABIDIFF_INCOMPATIBLE:
            worst = "incompatible"
        elif done.returncode & ABIDIFF_CHANGE and worst == "same":
            worst = "changed"
    return worst


def main() -> int:
    given, out = Path(sys.argv[1]), Path(sys.argv[2])
    names = given / "symbols"
    wanted = set(names.read_text().split()) if names.exists() else None
    new = read(given / "symvers", wanted)
    report: list[str] = []
    if (given / "base").exists():
        found = symbols(read(given / "base", wanted), new)
        types = abidiff(given / "base_modules", given / "modules", report)
    else:
        found, types = symbols(new, new), "not asked for"
    report[:0] = [f"{what.replace('_', ' ')}: {name}" for what, names in found.items() for name in names]
    broken = bool(found["removed"] or found["changed"] or found["exported_otherwise"])
    answer = {"base": (given / "base").exists(), "symbols": len(new), "broken": broken, **found, "abidiff": types}
    (out / "output.json").write_text(json.dumps(answer, indent=2))
    (out / "report.txt").write_text("".join(line + "\n" for line in report))
    print("\n".join(report))
    print(f"{len(new)} symbols, kABI {'broken' if broken else 'kept'}, abidiff: {types}")
    return 1 if broken or types in ("incompatible", "failed") else 0


if __name__ == "__main__":
    sys.exit(main())
