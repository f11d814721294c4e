"""Step missing-fixes: which upstream commits fix one of RANGE, and are not in it?

    missing_fixes.py IN RANGE UPSTREAM OUT

One pass over the upstream history that the range does not contain, and one over the range: a kernel's history is long.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: How a backport names the commit that it was made from: stable trees, git cherry-pick -x, distributions.
ORIGIN = re.compile(
    r"^\s*(?:\[\s*Upstream commit ([0-9a-f]{12,40})\s*\]|commit ([0-9a-f]{12,40}) upstream\.?"
    r"|\(cherry picked from commit ([0-9a-f]{12,40})\)|Git-commit: ([0-9a-f]{12,40}))\s*$",
    re.MULTILINE | re.IGNORECASE,
)
FIXES = re.compile(r"^\s*Fixes:\s+(?:commit\s+)?([0-9a-f]{7,40})\b", re.MULTILINE | re.IGNORECASE)
REVERTS = re.compile(r"^\s*This reverts commit ([0-9a-f]{7,40})", re.MULTILINE)


@dataclass(frozen=True)
class Commit:
    sha: str
    subject: str
    body: str


def git(tree: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(tree), *words], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        print(f"git {' '.join(words)}: {done.stderr.strip()}", file=sys.stderr)
        sys.exit(2)
    return done.stdout


def log(tree: Path, *words: str) -> list[Commit]:
    text = git(tree, "log", "--no-show-signature", "--format=%H%x1f%s%x1f%B%x1e", *words, "--")
    parts = (entry.strip("\n").split("\x1f") for entry in text.split("\x1e"))
    return [Commit(*part) for part in parts if len(part) == 3]


def origins(commit: Commit) -> set[str]:
    """What a commit is, upstream: itself, and what it says that it was made from."""
    return {commit.sha, *(name for match in ORIGIN.finditer(commit.body) for name in match.groups() if name)}


def known(name: str, shas: dict[str, list[str]]) -> str | None:
    """The whole name of an abbreviated one; None when it is none of these, or of two."""
    found = [sha for sha in shas.get(name[:7], ()) if sha.startswith(name) or name.startswith(sha)]
    return found[0] if len(found) == 1 else None


def by_prefix(shas: set[str]) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for sha in sorted(shas):
        made.setdefault(sha[:7], []).append(sha)
    return made


def missing(ours: list[Commit], base: list[Commit], upstream: list[Commit]) -> list[dict[str, str]]:
    """``ours``: of the range; ``base``: those before it that say where they are from; ``upstream``: what we lack."""
    here = {origin: commit for commit in ours for origin in origins(commit)}
    have = by_prefix({origin for commit in (*ours, *base) for origin in origins(commit)})
    names = by_prefix(set(here))
    found = []
    for fix in upstream:
        if known(fix.sha, have):
            continue
        for what, pattern in (("fixes", FIXES), ("reverts", REVERTS)):
            for name in pattern.findall(fix.body):
                if (sha := known(name.lower(), names)) is not None:
                    found.append({"commit": fix.sha, "subject": fix.subject, what: sha, "ours": here[sha].sha})
    return sorted(found, key=lambda one: (one["commit"], one["ours"]))


def main() -> int:
    given, range_, upstream, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    if range_.startswith("-") or upstream.startswith("-"):
        print("neither range nor upstream may begin with a dash", file=sys.stderr)
        return 2
    tree = given / "tree"
    if (other := given / "upstream_tree").exists():
        git(tree, "fetch", "--quiet", "--no-tags", str(other), "+refs/*:refs/upstream/*")
        name = upstream.removeprefix("origin/")
        upstream = git(other, "rev-parse", "--verify", f"refs/remotes/origin/{name}^{{commit}}").strip()
    head = range_.rpartition("..")[2] or "HEAD"
    ours = log(tree, range_)
    # Backports before the range: what they brought is no longer missing.
    base = [one for one in log(tree, head, f"^{upstream}") if ORIGIN.search(one.body)]
    fixes = log(tree, "-i", "-E", "--grep=^[[:space:]]*(Fixes:|This reverts commit)", upstream, f"^{head}")
    found = missing(ours, base, fixes)
    listed = given / "exceptions"
    excepted = (
        {line.split()[0] for line in listed.read_text().splitlines() if line.strip()} if listed.exists() else set()
    )
    wanted = [one for one in found if not any(one["commit"].startswith(name) for name in excepted)]
    lines = [f"{one['commit'][:12]} {one['subject']} (for {one['ours'][:12]})" for one in wanted]
    (out / "missing.txt").write_text("".join(line + "\n" for line in lines))
    answer = {"commits": len(ours), "missing": len(wanted), "excepted": len(found) - len(wanted), "fixes": wanted}
    (out / "output.json").write_text(json.dumps(answer, indent=2))
    print("\n".join(lines))
    print(f"{len(ours)} commits, {len(wanted)} fixes are missing")
    return 1 if wanted else 0


if __name__ == "__main__":
    sys.exit(main())
