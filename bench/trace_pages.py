"""How fast raw trace pages become arrays, beside the kernel's text read by Python: ``python bench/trace_pages.py``.

Both read the same events of this machine's kernel, in turns.  The peer reads the ``trace`` file and takes time, event
and pid of each line with one regular expression, which is what scripts around tracefs do.  Both must count the same.
Needs root; makes a trace instance of its own and removes it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evenkeel.measure.pages import decode, parse_header_page

EVENTS = ("sched/sched_switch", "sched/sched_waking", "irq/softirq_entry", "irq/softirq_exit")
LINE = re.compile(r"^.{16}-(\d+) +\[\d+\] \S+ +([0-9.]+): (\w+): ", re.MULTILINE)


def record(folder: Path, seconds: float) -> Path:
    """An instance that holds events and records no more."""
    instance = folder / f"instances/evenkeel-{os.getpid()}-bench"
    instance.mkdir()
    (instance / "buffer_size_kb").write_text("16384")
    for event in EVENTS:
        (instance / f"events/{event}/enable").write_text("1")
    load = subprocess.Popen(["sh", "-c", "while :; do true | true; done"])
    time.sleep(seconds)
    (instance / "tracing_on").write_text("0")
    load.kill()
    load.wait()
    return instance


def text(instance: Path) -> tuple[int, float]:
    start = time.process_time()
    found = sum(1 for match in LINE.finditer((instance / "trace").read_text(errors="replace")))
    return found, time.process_time() - start


def pages(kept: list[bytes], layout: str) -> tuple[int, float]:
    start = time.process_time()
    found = sum(len(decode(raw, parse_header_page(layout))) for raw in kept)
    return found, time.process_time() - start


def read(instance: Path) -> list[bytes]:
    kept = []
    for folder in sorted(instance.glob("per_cpu/cpu*")):
        descriptor = os.open(folder / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
        parts = []
        try:
            while part := os.read(descriptor, 4096):
                parts.append(part)
        except BlockingIOError:
            pass
        os.close(descriptor)
        kept.append(b"".join(parts))
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description="Raw trace pages beside the kernel's text.")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long events are recorded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    wish = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("this needs root, for tracefs")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run(["mount", "-t", "tracefs", "tracefs", place], check=True)
        try:
            instance = record(folder, wish.seconds)
            try:
                layout = (folder / "events/header_page").read_text()
                texts = [
                    text(instance) for _ in range(wish.rounds)
                ]  # reading the text leaves the events where they are
                kept = read(instance)
                raws = [pages(kept, layout) for _ in range(wish.rounds)]
            finally:
                instance.rmdir()
        finally:
            subprocess.run(["umount", place], check=True)
    assert {count for count, _ in texts} == {count for count, _ in raws}, (texts, raws)
    events = raws[0][0]
    peer, ours = (statistics.median(seconds for _, seconds in runs) for runs in (texts, raws))
    found = {"events": events, "text_s": round(peer, 3), "pages_s": round(ours, 4), "ratio": round(peer / ours, 1)}
    if wish.json:
        print(json.dumps(found))
    else:
        print(f"{events} events: text {peer:.3f} s, pages {ours:.4f} s of CPU time: {found['ratio']} times as fast,")
        print(f"{events / ours / 1e6:.1f} million events a second of CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
