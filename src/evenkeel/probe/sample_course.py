"""Latencies over time, counted while they come: slices of equal length, merged by twos when there would be too many.

For what cyclictest tells of each sample there are two readers of the same lines: :class:`Lines` here, and
:func:`awk` for a guest, where nothing but awk can be counted on.  Must not interpret what it counts.

Source: cyclictest(8), ``--verbose``: lines of thread, number, latency in us.  The next period after a late sample is
the first that has not passed yet, so the latencies alone tell when each sample was due.
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Sequence

#: As :mod:`evenkeel.documents.course` has them (a test holds both to the same).
MOST, BITS, SHORTEST_US = 128, 3, 125_000
_SLICE = re.compile(r"slice( \d+){4}( \d+:\d+)+\Z")
_LINE = re.compile(rb"^ *(\d+): *(\d+): *(\d+)$", re.MULTILINE)


class Course:
    """One histogram a slice.  Times in us; latencies in whatever unit, which the caller knows."""

    def __init__(self) -> None:
        self.slice_us = SHORTEST_US
        self._counts: list[dict[int, int]] = []
        self._largest: list[int] = []

    def add(self, at_us: int, latency: int) -> None:
        number = at_us // self.slice_us
        while number >= MOST:
            self._merge()
            number = at_us // self.slice_us
        while number >= len(self._counts):
            self._counts.append({})
            self._largest.append(0)
        shift = max(0, latency.bit_length() - 1 - BITS)
        low = latency >> shift << shift
        self._counts[number][low] = self._counts[number].get(low, 0) + 1
        self._largest[number] = max(self._largest[number], latency)

    def _merge(self) -> None:
        self.slice_us *= 2
        for number in range(0, len(self._counts) - 1, 2):
            for low, count in self._counts[number + 1].items():
                self._counts[number][low] = self._counts[number].get(low, 0) + count
            self._largest[number] = max(self._largest[number : number + 2])
        del self._counts[1::2], self._largest[1::2]

    def result(self) -> dict[str, Any] | None:
        """``{"slice_us": length, "slices": [[largest, {lower edge: samples}], ...]}``; None without samples."""
        slices = [[largest, counts] for largest, counts in zip(self._largest, self._counts)]  # noqa: B905
        return {"slice_us": self.slice_us, "slices": slices} if slices else None


class Thread:
    """What one thread of cyclictest has told so far, in us."""

    def __init__(self) -> None:
        self.samples = self.sum = self.now = self.max = self._due = 0
        self.min: int | None = None
        self.course = Course()

    def add(self, latency: int, interval_us: int) -> None:
        self.course.add(self._due, latency)
        self._due += interval_us * (1 + latency // interval_us)
        self.samples += 1
        self.sum += latency
        self.now = latency
        self.min = latency if self.min is None else min(self.min, latency)
        self.max = max(self.max, latency)

    def standing(self) -> tuple[int, int, int, int, int]:
        """Samples, then the smallest, the last, the mean and the largest."""
        return self.samples, self.min or 0, self.now, self.sum // max(1, self.samples), self.max


class Lines:
    """The lines of ``cyclictest --verbose``, fed in pieces that may end anywhere; all others are passed over."""

    def __init__(self, interval_us: int) -> None:
        self._interval_us, self._rest = interval_us, b""
        self.threads: dict[int, Thread] = {}

    def feed(self, chunk: bytes) -> None:
        text = self._rest + chunk
        end = text.rfind(b"\n") + 1
        self._rest = text[end:]
        for match in _LINE.finditer(text, 0, end):
            self.threads.setdefault(int(match[1]), Thread()).add(int(match[3]), self._interval_us)

    def courses(self) -> dict[str, Any]:
        """Thread (as text) -> what :meth:`Course.result` gives."""
        return {str(number): thread.course.result() for number, thread in sorted(self.threads.items())}


#: For awk of POSIX (mawk, busybox): ``counts`` and ``largest``, by "who,slice,low" and "who,slice", are merged by twos;
#: the lower edge of a bucket, where ``edge`` is the first value that is not counted by itself.
AWK_FUNCTIONS = r"""
function merged(  key, part, to) {
	slice *= 2
	for (key in counts) {
		split(key, part, ",")
		to = part[1] "," int(part[2] / 2) "," part[3]
		fresh[to] += counts[key]
		delete counts[key]
	}
	for (key in fresh) { counts[key] = fresh[key]; delete fresh[key] }
	for (key in largest) {
		split(key, part, ",")
		to = part[1] "," int(part[2] / 2)
		if (largest[key] > fresh[to]) fresh[to] = largest[key]
		delete largest[key]
	}
	for (key in fresh) { largest[key] = fresh[key]; delete fresh[key] }
}
function low(value, edge,  width) {
	width = 1
	while (value >= width * edge) width *= 2
	return value - value % width
}
"""
#: The same as :class:`Lines`, with the variables of :func:`awk`.
_AWK = (
    AWK_FUNCTIONS
    + r"""
BEGIN {
	while ((cmd | getline line) > 0) {
		if (line !~ /^ *[0-9]+: *[0-9]+: *[0-9]+$/) continue
		split(line, part, ":")
		thread = part[1] + 0; value = part[3] + 0; at = due[thread] + 0
		while (int(at / slice) >= slices) merged()
		number = int(at / slice)
		counts[thread "," number "," low(value, edge)]++
		if (value > largest[thread "," number]) largest[thread "," number] = value
		due[thread] = at + interval * (1 + int(value / interval))
		if (!samples[thread] || value < least[thread]) least[thread] = value
		if (value > most[thread]) most[thread] = value
		samples[thread]++; sum[thread] += value; now[thread] = value
		if (live != "" && at >= told + 1000000) {
			told = at
			for (thread in samples) {
				mean = int(sum[thread] / samples[thread])
				print thread, samples[thread], least[thread], now[thread], mean, most[thread] > live
			}
			close(live)
		}
	}
	for (key in counts) {
		split(key, part, ",")
		row[part[1] "," part[2]] = row[part[1] "," part[2]] " " part[3] ":" counts[key]
	}
	for (key in row) {
		split(key, part, ",")
		print "slice", part[1], slice, part[2], largest[key] + 0 row[key]
	}
}
"""
)


def awk(argv: Sequence[str], interval_us: int, live: str = "") -> list[str]:
    """The command line of awk that runs ``argv``, reads what it tells, and prints at its end a line for each slice:
    thread, length in us, number, largest, counts.  ``live``: a file that it writes anew each second; empty: none.

    As the parent it is all that has to be killed: nobody reads what cyclictest writes then, which ends that.
    """
    variables = {
        "cmd": " ".join(map(shlex.quote, argv)),
        "interval": interval_us,
        "live": live,
        "slice": SHORTEST_US,
        "slices": MOST,
        "edge": 2 << BITS,
    }
    return ["awk", *(word for name, value in variables.items() for word in ("-v", "%s=%s" % (name, value))), _AWK]


def parse_awk(text: str) -> dict[str, Any]:
    """What :func:`awk` printed, as :meth:`Lines.courses` gives it.  Lines of another shape are passed over."""
    found: dict[str, dict[int, list[Any]]] = {}
    slice_us = SHORTEST_US
    for line in text.splitlines():
        if not _SLICE.match(line):
            continue
        words = line.split()
        slice_us = int(words[2])
        counts = {int(low): int(count) for low, _, count in (word.partition(":") for word in words[5:])}
        found.setdefault(words[1], {})[int(words[3])] = [int(words[4]), counts]
    return {
        thread: {"slice_us": slice_us, "slices": [slices.get(n, [0, {}]) for n in range(max(slices) + 1)]}
        for thread, slices in sorted(found.items())
    }
