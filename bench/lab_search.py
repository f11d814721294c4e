"""How much CPU time a search for machines takes beside a scan of their facts as JSON: ``python bench/lab_search.py``.

Pools of 630 and 10,000 machines in SQLite, made from the recorded machines in ``--trees`` (a folder of tarballs;
without, from constructed ones): each is one of those with another name, memory, cards, flags and site.  Both sides
answer the same predicates in turns, in one process; the scan loads each machine's flat facts from a column of JSON and
asks :meth:`Predicate.matches`, which is what a pool without an index does.  Their answers must be the same.
``index``: which machines fit, from the index in memory and, for what that does not hold, from SQL; ``sql``: all of it
from SQL, as reservations ask.  ``find``: what a page asks for: the count, the first 100 machines whole, all facets.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy import insert, select, text

from evenkeel.documents.facts import Facts
from evenkeel.documents.inventory import Inventory
from evenkeel.lab import flat, schema, search
from evenkeel.lab.actor import with_roles
from evenkeel.lab.facets import View, index_of
from evenkeel.lab.lab import Lab
from evenkeel.lab.predicate import Predicate
from evenkeel.lab.store import Store, create, sqlite_url
from evenkeel.machines.address import resolve

GIB = 1 << 30
ACTOR = with_roles("bench", ["user"])
#: What people ask for: a name, a flag, a card and sizes, an alternative, a glob, everything.
PREDICATES = {
    "name": "host00123",
    "flag": "cpu.flag:avx512_vnni",
    "4 terms with ranges": "cpu.flag:avx512f nic.driver:mlx5_core mem>=256GiB sriov.vfs>=8",
    "or, not": "(site:prg OR site:nue) NOT vendor:dell* cpu.threads:32..128",
    "glob": 'cpu.model:*epyc*',
    "everything": "",
}  # fmt: skip
Flat = dict[str, list[str | float]]


def recorded(folder: Path | None) -> list[Flat]:
    """Flat facts of the recorded machines; of constructed ones where there are none."""
    found: list[Flat] = []
    for path in sorted(folder.glob("*.tar.*")) if folder else ():
        with resolve(str(path)).probe() as probe:
            facts = Facts.model_validate(probe.call("facts"))
            inventory = Inventory.model_validate(probe.call("inventory"))
        found.append({key: list(values) for key, values in flat.flatten(facts, inventory).items()})
    flags = [f"flag{n}" for n in range(120)]
    ids = [f"8086:{n:04x}" for n in range(40)]
    one: dict[str, list[str | float]] = {"arch": ["x86_64"], "numa.nodes": [2], "cpu.sockets": [2], "iommu": ["yes"]}
    one |= {"cpu.flag": [*flags], "pci.id": [*ids], "disk.kind": ["nvme"], "kvm": ["yes"]}
    models = (("dell inc.", "intel xeon gold"), ("hpe", "amd epyc 7543"), ("lenovo", "amd epyc 9354"))
    return found or [one | {"vendor": [vendor], "cpu.model": [model]} for vendor, model in models]


def generate(bases: list[Flat], count: int) -> Iterable[tuple[str, str, Flat]]:
    """(name, site, flat facts): each a recorded machine with what differs between machines of one model."""
    dice = random.Random(630)
    for number in range(count):
        facts = dict(dice.choice(bases))
        facts["mem"] = [dice.choice([64, 128, 256, 512, 1024]) * GIB - dice.randrange(GIB)]
        facts["cpu.threads"] = [dice.choice([16, 32, 64, 96, 128, 256])]
        facts["nic.driver"] = dice.sample(["igb", "i40e", "ice", "mlx5_core", "bnxt_en", "tg3", "ixgbe"], 2)
        facts["nic.speed"] = [dice.choice([1, 10, 25, 100]) * 1e9]
        facts["sriov.vfs"] = [dice.choice([0, 7, 8, 64, 128])]
        newer = dice.sample(["avx512f", "avx512_vnni", "amx_tile", "sve2", "waitpkg"], dice.randrange(4))
        facts["cpu.flag"] = sorted({*facts.get("cpu.flag", []), *newer}, key=str)
        facts["mac"] = [f"00:1b:{number >> 8 & 255:02x}:{number & 255:02x}:00:{n:02x}" for n in range(4)]
        facts["serial"] = [f"s{number:07}"]
        facts["kernel.version"] = [dice.choice(["6.12.3-rt", "6.4.0-150600", "5.14.21", "6.16.1"])]
        yield f"host{number:05}", dice.choice(["prg", "nue", "brq", "lab5"]), facts


def fill(lab: Lab, bases: list[Flat], count: int) -> None:
    machines, facts, plain = [], [], []
    for number, (name, site, flat_facts) in enumerate(generate(bases, count)):
        machine_id = f"{number:08}-0000-4000-8000-000000000000"
        row = {"id": machine_id, "name": name, "site": site, "state": "ready", "state_since_ns": 0}
        machines.append(row | {"identity": {}, "policy": {}, "registered_ns": 0})
        facts += [
            {"machine_id": machine_id, "key": key, "text": flat.text_of(one), "num": flat.number_of(key, one)}
            for key, values in flat_facts.items()
            for one in set(values)
        ]
        plain.append({"id": machine_id, "document": json.dumps(flat_facts | {"name": [name], "site": [site]})})
    with lab.store.engine.begin() as connection:
        connection.execute(insert(schema.machine), machines)
        connection.execute(insert(schema.fact), facts)
        connection.execute(text("CREATE TABLE plain (id TEXT PRIMARY KEY, document TEXT)"))
        connection.execute(text("INSERT INTO plain VALUES (:id, :document)"), plain)
        connection.execute(text("ANALYZE"))
    print(f"{count} machines, {len(facts)} facts, {(lab.folder / 'lab.db').stat().st_size >> 20} MiB", file=sys.stderr)


def indexed(lab: Lab, predicate: Predicate) -> tuple[View, int]:
    with lab.store.read() as connection:
        view = index_of(lab).follow(connection)
        return view, search.fitting(view, connection, predicate)


def asked(lab: Lab, predicate: Predicate) -> set[str]:
    with lab.store.read() as connection:
        return set(connection.scalars(select(schema.machine.c.id).where(search.condition(predicate))))


def scanned(lab: Lab, predicate: Predicate) -> set[str]:
    with lab.store.read() as connection:
        rows = connection.execute(text("SELECT id, document FROM plain"))
        return {row.id for row in rows if predicate.matches(json.loads(row.document))}


def milliseconds(act: Callable[[], object]) -> float:
    """CPU time of this process: what the machine does besides is not the search's."""
    begin = time.process_time_ns()
    act()
    return (time.process_time_ns() - begin) / 1e6


def measure(lab: Lab, count: int, rounds: int) -> list[dict[str, float | str | int]]:
    table: list[dict[str, float | str | int]] = []
    for name, wanted in PREDICATES.items():
        predicate = Predicate.parse(wanted)
        view, fit = indexed(lab, predicate)
        found = set(view.by_name(fit, 0, count))
        if not found == asked(lab, predicate) == scanned(lab, predicate):
            sys.exit(f"{wanted!r}: the index, SQL and the scan disagree")
        ours, theirs, pages, database = [], [], [], []
        for number in range(rounds):
            ours.append(milliseconds(lambda: indexed(lab, predicate)))  # noqa: B023
            database.append(milliseconds(lambda: asked(lab, predicate)))  # noqa: B023
            pages.append(milliseconds(lambda: search.find(lab, ACTOR, wanted)))  # noqa: B023
            if number < max(3, rounds // 5):
                theirs.append(milliseconds(lambda: scanned(lab, predicate)))  # noqa: B023
        table.append(
            {
                "machines": count,
                "search": name,
                "found": len(found),
                "index_ms": round(statistics.median(ours), 2),
                "index_p99_ms": round(sorted(ours)[int(len(ours) * 0.99)], 2),
                "sql_ms": round(statistics.median(database), 2),
                "scan_ms": round(statistics.median(theirs), 1),
                "ratio": round(statistics.median(theirs) / statistics.median(ours), 1),
                "find_ms": round(statistics.median(pages), 2),
                "find_most_ms": round(max(pages), 2),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=Path, help="folder with recorded machines (*.tar.bz2, *.tar.gz)")
    parser.add_argument("--machines", type=int, nargs="*", default=[630, 10_000])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bases = recorded(options.trees)
    table = []
    for count in options.machines:
        with tempfile.TemporaryDirectory() as folder, Store(sqlite_url(Path(folder) / "lab.db")) as store:
            create(store)
            lab = Lab(Path(folder), store)
            fill(lab, bases, count)
            table += measure(lab, count, options.rounds)
    if options.json:
        print(json.dumps(table, indent=2))
        return
    columns = list(table[0])
    print(" | ".join(columns))
    for row in table:
        print(" | ".join(str(row[column]) for column in columns))


if __name__ == "__main__":
    main()
