"""How long reading facts takes beside lstopo, on the largest recorded machine: ``python bench/facts.py``.

Both run as whole processes on the same unpacked tree (lstopo through HWLOC_FSROOT), in turns, so that load on the
machine falls on both.  lstopo reads the topology; facts read that and the settings.  What is missing is said and is
no failure of the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

MACHINES = Path(os.environ.get("EVENKEEL_MACHINES") or Path(__file__).parents[2] / "shared" / "machines")
LSTOPO = ("lstopo-no-graphics", "lstopo")
OURS = (
    "import json, sys; from evenkeel.probe.facts import read_facts; json.dump(read_facts(sys.argv[1]), sys.stdout)",
)


def largest() -> tuple[Path, int] | None:
    """The recorded machine with the most files, and their number."""
    found = []
    for path in sorted(MACHINES.glob("*.tar.*")):
        with tarfile.open(path) as archive:
            found.append((sum(member.isreg() for member in archive), path))
    return max((path, count) for count, path in [max(found)]) if found else None


def run(command: list[str], environment: dict[str, str]) -> tuple[float, bytes]:
    """Seconds, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each, in turns (default 7)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    found = largest()
    if found is None:
        print(f"missing: no recorded machines in {MACHINES}; set EVENKEEL_MACHINES", file=sys.stderr)
        return 0
    lstopo = next((path for name in LSTOPO if (path := shutil.which(name))), None)
    if lstopo is None:
        print("missing: lstopo; apt-get install hwloc-nox", file=sys.stderr)
    tarball, count = found
    with tempfile.TemporaryDirectory(prefix="evenkeel-bench-") as folder:
        with tarfile.open(tarball) as archive:
            archive.extractall(folder, filter="data")
        tree = next(path.parent for path in sorted(Path(folder).rglob("sys")) if path.is_dir())
        measured = compare(tree, lstopo, arguments.runs)
    result = {"machine": tarball.name.split(".tar.")[0], "files": count, **measured}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0


def compare(tree: Path, lstopo: str | None, runs: int) -> dict[str, float]:
    """Medians in seconds of ``runs`` runs in turns, after one of each that is not counted."""
    environment = {**os.environ, "HWLOC_FSROOT": str(tree), "HWLOC_THISSYSTEM": "0"}
    ours = [sys.executable, "-I", "-c", *OURS, str(tree)]
    theirs = [lstopo, "--of", "xml"] if lstopo else None
    facts: list[float] = []
    other: list[float] = []
    cpus = 0
    for number in range(runs + 1):
        seconds, printed = run(ours, environment)
        cpus = len(json.loads(printed)["cpus"])
        facts += [seconds] if number else []
        if theirs:
            seconds, printed = run(theirs, environment)
            assert printed.count(b'type="PU"') == cpus, "lstopo did not read the same tree"
            other += [seconds] if number else []
    result: dict[str, float] = {"cpus": cpus, "facts_s": statistics.median(facts), "runs": runs}
    if other:
        result["lstopo_s"] = statistics.median(other)
        result["ratio"] = statistics.median(mine / its for mine, its in zip(facts, other, strict=True))
    return result


def show(result: Mapping[str, object]) -> None:
    print(
        f"{result['machine']}: {result['cpus']} CPUs, {result['files']} files, {result['runs']} runs of each in turns"
    )
    print(f"facts   {result['facts_s']:6.3f} s  (median, whole process)")
    if "ratio" in result:
        print(f"lstopo  {result['lstopo_s']:6.3f} s")
        print(f"ratio   {result['ratio']:6.2f}    (median of facts / lstopo)")


if __name__ == "__main__":
    sys.exit(main())
