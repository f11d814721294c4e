"""timerlat inside a guest, counted there: by awk, while it runs, so that an hour takes no more room than a second.

The script that records timerlat for an explanation (:mod:`evenkeel.probe.recording_guest`) sets it up here too, and
puts back what it found.  Where that keeps raw pages, this keeps counts: those of :mod:`evenkeel.probe.sample_tracer`,
from the same text of the kernel.  Must not interpret the result: `evenkeel.measure` does.
"""

from __future__ import annotations

import contextlib
import errno
import shlex
from typing import Any, Iterator, Sequence

from evenkeel.probe import recording_guest
from evenkeel.probe.sample_course import AWK_FUNCTIONS, MOST, SHORTEST_US
from evenkeel.probe.sample_course import BITS as COURSE_BITS
from evenkeel.probe.sample_guest import agent, guest_file
from evenkeel.probe.sample_rttests import unseen
from evenkeel.probe.sample_tracer import BITS

#: A ring of so many kB a CPU: text of 50 s and more, at a sample a millisecond, may wait there.
_RING_KB = 4096
#: How long a guest may take to start timerlat; one that boots is waited for elsewhere.
_START_S = 60.0
_COUNTS = "counts"
#: Lines as the kernel writes them: ``... [001] d.h1. 51.13: #42  context irq timer_latency  1234 ns``.  A task may call
#: itself what it likes, so they are read from their end, and the CPU is the last such word before the number.  Numbers
#: from 2**31 on are words of their own: not every awk writes them in full.
_AWK = (
    AWK_FUNCTIONS
    + r"""
function whole(number) { return number < 2147483648 ? number + 0 : sprintf("%.0f", number) }
$NF == "ns" && $(NF - 2) == "timer_latency" && $(NF - 4) == "context" && $(NF - 5) ~ /^#[0-9]+$/ {
	cpu = ""
	for (n = NF - 6; n > 0 && cpu == ""; n--) if ($n ~ /^\[[0-9]+\]$/) cpu = substr($n, 2, length($n) - 2) + 0
	if (cpu == "") next
	key = cpu ":" $(NF - 3); value = $(NF - 1) + 0; number = substr($(NF - 5), 2) + 0
	at = number > 1 ? interval * (number - 1) : 0
	while (int(at / slice) >= slices) merged()
	part = key "," int(at / slice)
	counts[part "," whole(low(value, edge))]++
	if (value > largest[part]) largest[part] = value
	buckets[key "," whole(low(value, fine))]++
	if (!samples[key] || value < least[key]) least[key] = value
	if (value > most[key]) most[key] = value
	if (number > last[key]) last[key] = number
	samples[key]++; sum[key] += value
}
END {
	for (key in samples)
		printf "run %s %d %.0f %.0f %.0f %d\n", key, samples[key], sum[key], least[key], most[key], last[key]
	for (key in buckets) { split(key, part_of, ","); print "bucket", part_of[1], part_of[2], buckets[key] }
	for (key in counts) {
		split(key, part_of, ",")
		row[part_of[1] "," part_of[2]] = row[part_of[1] "," part_of[2]] " " part_of[3] ":" counts[key]
	}
	for (key in row) {
		split(key, part_of, ",")
		print "slice", part_of[1], slice, part_of[2], whole(largest[key]) row[key]
	}
}
"""
)
_COUNT = r"""
uname -r >$out/kernel
mkfifo $out/lines || fail "cannot make a pipe in the guest"
awk -v interval=$period -v slice=%(slice)d -v slices=%(slices)d -v edge=%(edge)d -v fine=%(fine)d %(awk)s \
	<$out/lines >$out/counts 2>$out/awk &
reader=$!
exec 6>$out/lines 5<$I/trace_pipe
rest 0.2
kill -0 $reader 2>/dev/null || fail "awk does not run in the guest"
list=$(cd $I/per_cpu && echo cpu*)
waiting() {  # sets entries: how many wait in the rings
	entries=0
	for c in $list; do
		while read -r name value; do
			[ $name = entries: ] && { entries=$((entries + value)); break; }
		done <$I/per_cpu/$c/stats
	done
}
echo 1 >$I/tracing_on
echo started >$out/started
now
until=$((now + seconds + 1))
taken=0
# Nobody waits at the pipe: the kernel would wake it by an interrupt on the measured vCPU.  A line has more than 90
# characters, so a read of 4096 takes no more than 46 of them, and so many reads find something.
while [ $now -lt $until ] && [ ! -e $out/stop ]; do
	rest 1
	waiting
	[ $entries -lt 46 ] || { dd bs=4096 count=$((entries / 46)) <&5 >&6 2>/dev/null; taken=1; }
	now
done
echo 0 >$I/tracing_on
waiting
# Off and read from before, it ends where it is empty.
[ $entries$taken = 00 ] || dd bs=4096 <&5 >&6 2>/dev/null
exec 6>&- 5<&-
left=120
while kill -0 $reader 2>/dev/null && [ $left -gt 0 ]; do rest 0.5; left=$((left - 1)); done
kill -0 $reader 2>/dev/null && fail "awk did not count all that timerlat wrote within a minute"
reader=
trap - EXIT
ended
echo done >$out/done
""" % {
    "slice": SHORTEST_US,
    "slices": MOST,
    "edge": 2 << COURSE_BITS,
    "fine": 2 << BITS,
    "awk": shlex.quote(_AWK),
}
SCRIPT = recording_guest.SETUP + _COUNT


class TimerlatInGuest:
    """On each of ``vcpus``, at FIFO 95, woken each ``interval_us``.  Ended with ``stack``.

    Raises ENOTCONN without a guest agent, EOPNOTSUPP with the guest's words where its kernel or image cannot.
    """

    def __init__(
        self, stack: contextlib.ExitStack, guest: str, seconds: int, vcpus: Sequence[int], interval_us: int = 1000
    ) -> None:
        self._guest = guest
        text = ",".join(str(vcpu) for vcpu in vcpus)
        self._argv = ["timerlat", "cpus=%s" % text, "timerlat_period_us=%d" % interval_us]
        self._done = False
        words = [str(int(seconds)), str(int(interval_us)), text, str(_RING_KB), "0", "0"]
        stack.callback(self._clean)
        with self._failing():
            self._pid = recording_guest.start_script(guest, SCRIPT, words, _START_S)

    def running(self) -> bool:
        with self._failing():
            self._done = self._done or recording_guest.has_ended(self._guest, self._pid)
        return not self._done

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """A script that has failed has ended as well."""
        try:
            yield
        except OSError as error:
            self._done = error.errno == errno.EOPNOTSUPP
            raise

    def now(self) -> list[str]:
        return [unseen(self._guest, "timerlat says nothing before its end")]

    def _clean(self) -> None:
        """It ends by itself otherwise, at its time; its files stay then until the next one."""
        with contextlib.suppress(OSError):
            if self._done:
                recording_guest.clean(self._guest)
            else:
                handle = agent(self._guest, "guest-file-open", path=recording_guest.FOLDER + "/stop", mode="w")
                agent(self._guest, "guest-file-close", handle=handle)

    def result(self) -> dict[str, Any]:
        """``{"argv": [...], "kernel": release, "cpus": ...}``, as Tracer.result() of the host gives them."""
        return {"argv": self._argv, "kernel": self._text("kernel").strip(), "cpus": parse(self._text(_COUNTS))}

    def _text(self, name: str) -> str:
        data = b""
        while piece := guest_file(self._guest, "%s/%s" % (recording_guest.FOLDER, name), len(data), 1 << 20):
            data += piece
        return data.decode(errors="replace")


def parse(text: str) -> dict[str, dict[str, Any]]:
    """What awk printed, as :meth:`evenkeel.probe.sample_tracer.Counts.result` gives it.  Raises EPROTO for else."""
    found: dict[str, dict[str, Any]] = {}
    slices: dict[str, dict[int, list[Any]]] = {}
    slice_us = SHORTEST_US
    try:
        rows = [line.split() for line in text.splitlines()]
        for _, key, samples, total, least, most, last in (row for row in rows if row[0] == "run"):
            counted = {"counts": {}, "samples": int(samples), "sum": int(total), "min": int(least), "max": int(most)}
            found[key] = {**counted, "lost": max(0, int(last) - int(samples))}
        for _, key, low, count in (row for row in rows if row[0] == "bucket"):
            found[key]["counts"][int(low)] = int(count)
        for _, key, length, number, largest, *counts in (row for row in rows if row[0] == "slice"):
            slice_us = int(length)
            pairs = (word.partition(":") for word in counts)
            slices.setdefault(key, {})[int(number)] = [int(largest), {int(low): int(n) for low, _, n in pairs}]
        answer: dict[str, dict[str, Any]] = {}
        for key, one in sorted(found.items()):
            cpu, _, context = key.partition(":")
            own = slices[key]
            course = {"slice_us": slice_us, "slices": [own.get(n, [0, {}]) for n in range(max(own) + 1)]}
            answer.setdefault(cpu, {})[context] = {**one, "course": course}
    except (ValueError, KeyError, IndexError) as error:
        raise OSError(errno.EPROTO, "awk in the guest wrote what cannot be read: %s" % error) from None
    return answer
