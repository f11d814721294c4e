"""Step measure: `evenkeel measure` on the claimed machine, or in a virtual host that is made and removed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from evenkeel.apply.hosts import ask_facts
from evenkeel.documents.evidence import EMULATION_NOTE, Evidence
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.spec import BUILT_IN
from evenkeel.plan.sitefile import find_place, parse_site


@contextlib.contextmanager
def machine() -> Iterator[str]:
    """The address of what is measured."""
    if claimed := os.environ.get("MACHINE_ADDRESS"):
        yield claimed
        return
    if wanted := os.environ["SET_MACHINE"]:
        raise WrongInput(f"there is no machine for {wanted!r} here", hint="a lab gives one that ssh reaches")
    name = f"step-{os.getpid()}"
    lifecycle.create(name, BUILT_IN[os.environ["SET_TOPOLOGY"]])
    try:
        lifecycle.start(name)
        yield f"virtual:{name}"
    finally:
        with contextlib.suppress(EvenkeelError):
            lifecycle.remove(name)


def our_site(lib: Path, address: str) -> str:
    """The site that comes along; where the machine has one node only, its guest has one vCPU."""
    text = (lib / "measure.site").read_text()
    return (
        text
        if len(ask_facts(address).nodes) > 1
        else text.replace("vcpus: 2", "vcpus: 1").replace("numa: 2", "numa: 1")
    )


def readdressed(text: str, address: str) -> str:
    """The site with another address of its one host."""
    site = parse_site(text, "site")
    if len(site.hosts) != 1:
        raise WrongInput(f"the site has {len(site.hosts)} hosts; this step measures one")
    (name,) = site.hosts
    where = find_place([("site", text)], "hosts", name, "address")
    assert where and where.line and where.column
    lines = text.splitlines(keepends=True)
    line = lines[where.line - 1]
    before, rest = line[: where.column - 1], line[where.column - 1 :]
    old = site.hosts[name].address
    quote = rest[0] if rest[0] in "'\"" else ""
    lines[where.line - 1] = before + json.dumps(address) + rest[len(old) + 2 * len(quote) :]
    return "".join(lines)


def told(evidence: Evidence) -> dict[str, object]:
    """What the output says of it: counts, and latencies with what they are worth."""
    latencies = [
        {
            "tool": one.tool,
            "where": one.guest or one.where,
            "samples": one.samples,
            "max_ns": one.max_ns,
            **({"note": EMULATION_NOTE} if one.label else {}),
        }
        for one in evidence.latencies
    ]
    conditions = evidence.conditions
    return {"emulated": conditions.emulated, "kernel": conditions.kernel.split()[0], "latencies": latencies}


def main() -> int:
    given, lib, out = (Path(os.environ[name]) for name in ("IN", "LIB", "OUT"))
    evidence = out / "evidence.json"
    try:
        with machine() as address:
            site = Path("site.yaml")
            source = given / "site"
            text = source.read_text() if source.exists() else our_site(lib, address)
            site.write_text(readdressed(text, address))
            words = [sys.executable, "-m", "evenkeel", "measure", str(site), "-o", str(evidence)]
            for option, name in (("--for", "TIME"), ("--tools", "TOOLS"), ("--load", "LOAD")):
                words += [option, os.environ[f"SET_{name}"]]
            code = subprocess.run(words, check=False).returncode
    except EvenkeelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not evidence.exists():
        return code or 1
    found = told(Evidence.from_json(evidence.read_text(), file=str(evidence)))
    (out / "output.json").write_text(json.dumps({**found, "deadlines": "kept" if code == 0 else "not kept"}, indent=2))
    return code if found["latencies"] else 1


if __name__ == "__main__":
    sys.exit(main())
