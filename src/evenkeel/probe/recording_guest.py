"""Record timerlat and osnoise inside a guest, as raw pages, with nothing in the guest but a shell, mkfifo and dd.

A shell script does it, started through the guest agent.  It ends by itself at its deadline and removes its trace
instance, also when host and guest lose each other.  Its files lie in the guest's /run until they are fetched, through
the agent too.  Must not decode.
"""

from __future__ import annotations

import base64
import errno
import os
import time
from typing import Any, Callable, Sequence

from evenkeel.probe.sample import qemu_pid
from evenkeel.probe.sample_guest import agent, guest_file, guest_start, guest_state

OnProgress = Callable[[int, int, str], None]

FOLDER = "/run/evenkeel-spikes"
#: All that was recorded, as one file: each question to the agent takes its time.
ARCHIVE = "all.tgz"
#: Leads to the marker of the recording while there is one: what is written there the guest's clock stamps.
_MARKER = "marker"
#: What one reading through the agent carries; libvirt refuses answers of 4 MiB and more.
_PIECE = 1 << 20
#: osnoise measures each disturbance of the timerlat thread: what, from when, how long.
_EVENTS = "nmi_noise irq_noise softirq_noise thread_noise"

#: Arguments of a shell: the script, and its own.  A shell that can wait by itself is preferred: bash, and busybox's.
_SHELL = """
script=$1; shift
for shell in /bin/bash /usr/bin/bash; do [ -x $shell ] && exec $shell -c "$script" evenkeel "$@"; done
exec /bin/sh -c "$script" evenkeel "$@"
"""
#: Timerlat in a trace instance of its own, not yet on: what a recording and a measurement begin with.
#: Arguments: seconds, period in us, vCPUs as a list, kB of ring a CPU, MB of files at most; in us, how late a sample
#: must be to end the recording, 0: none, and then what the rings hold is written out now and then.
SETUP = r"""
set -u
reader=
seconds=$1 period=$2 cpus=$3 ring=$4 most=$5 late=$6
T=/sys/kernel/tracing
[ -d $T/instances ] || T=/sys/kernel/debug/tracing
out=%(folder)s
rm -rf $out; mkdir -p $out || exit 1
fail() { echo "$1" >$out/failed; exit 1; }
[ -d $T/instances ] || fail "no tracefs in the guest"
grep -qw timerlat $T/available_tracers || fail "the kernel of the guest has no timerlat tracer"
for old in $T/instances/evenkeel-*; do
	[ -d "$old" ] && [ ! -d /proc/${old##*-} ] && { echo nop >$old/current_tracer; rmdir $old; }
done
I=$T/instances/evenkeel-$$
for one in $T $T/instances/*; do
	[ -e $one/current_tracer ] || continue
	read -r used <$one/current_tracer
	case $used in timerlat | osnoise) fail "the tracer $used is in use in the guest" ;; esac
done
mkdir $I || fail "cannot make a trace instance"
kept_cpus=$(cat $T/osnoise/cpus) kept_period=$(cat $T/osnoise/timerlat_period_us)
kept_late=$(cat $T/osnoise/stop_tracing_total_us)
ended() {
	echo 0 >$I/tracing_on; echo nop >$I/current_tracer
	[ -z "$reader" ] || kill $reader 2>/dev/null
	exec 5<&- 6>&-  # who holds a file of the instance holds that
	echo $kept_late >$T/osnoise/stop_tracing_total_us
	echo "$kept_cpus" >$T/osnoise/cpus; echo $kept_period >$T/osnoise/timerlat_period_us
	# At last: where it is gone, all is as it was.  The agent may hold its marker for a moment, for a round trip.
	rmdir $I 2>/dev/null || { sleep 1; rmdir $I; }
}
trap ended EXIT
trap 'exit 1' HUP INT TERM
echo 0 >$I/tracing_on
echo $ring >$I/buffer_size_kb
echo "$cpus" >$T/osnoise/cpus && echo $period >$T/osnoise/timerlat_period_us || fail "timerlat takes no CPUs $cpus"
echo $late >$T/osnoise/stop_tracing_total_us || fail "timerlat takes no threshold $late"
# Not before the host records too: what is late until then would end a recording of one side.
echo 0 >$T/osnoise/stop_tracing_total_us
armed=0
echo timerlat >$I/current_tracer || fail "timerlat does not start"
# Nobody writes to it but the shell itself: reading it is waiting, where the shell's read has a limit of time.
mkfifo $out/wake && exec 3<>$out/wake && echo >&3
if (read -t 1 none <&3) 2>/dev/null; then rest() { read -t $1 none <&3; }; else rest() { sleep $1; }; fi
now() { read -r now rest </proc/uptime; now=${now%%%%.*}; }
""" % {"folder": FOLDER}
SCRIPT = (
    SETUP
    + r"""
echo x86-tsc >$I/trace_clock || fail "the kernel of the guest has no x86-tsc trace clock"
for e in %(events)s; do echo 1 >$I/events/osnoise/$e/enable || fail "no event osnoise:$e"; done
for e in %(events)s; do cp $I/events/osnoise/$e/format $out/osnoise:$e.format; done
for e in timerlat print; do cp $T/events/ftrace/$e/format $out/ftrace:$e.format; done
cp $T/events/header_page $out/
# What the shell does itself costs the vCPU next to nothing, each program that it starts a millisecond or more: so a
# ring is emptied when a quarter of it is full, and not for the pages that came while it was emptied.
# A read of what is there never waits, and every dd knows how to count, not every one how not to wait.
kept=0 quarter=$((ring / 16))
drain() {  # $1: pages that are not worth a program; "all": take what there is
	for c in $list; do
		while :; do
			entries=0 bytes=0
			while read -r name value; do
				case $name in entries:) entries=$value ;; bytes:) bytes=$value; break ;; esac
			done <$I/per_cpu/cpu$c/stats
			pages=$((bytes / 4096))
			[ "$1$pages" = all0 ] && [ $entries -gt 0 ] && pages=1
			[ $pages -gt 0 ] || break
			[ "$1" = all ] || [ $pages -ge $1 ] || break
			dd if=$I/per_cpu/cpu$c/trace_pipe_raw bs=4096 count=$pages 2>/dev/null >>$out/cpu$c.raw || break
			kept=$((kept + pages))
		done
	done
}
cost() {  # when it is; what timerlat took, in ns; what this shell and all that it has started took, in 1/100 s
	timers=
	for t in /proc/[0-9]*; do
		read -r name <$t/comm || continue
		case $name in timerlat/*) read -r ns rest <$t/schedstat && timers=$((timers + ns)) ;; esac
	done 2>/dev/null
	read -r up rest </proc/uptime
	read -r line </proc/$$/stat
	echo "$up ${timers:--} ${line##*) }" >>$out/cost
}
list=$(cd $I/per_cpu && echo cpu* | sed 's/cpu//g')
cost
echo 1 >$I/tracing_on
ln -s $I/trace_marker $out/%(marker)s
echo started >$out/started
now
until=$((now + seconds))
while [ $now -lt $until ] && [ ! -e $out/stop ]; do
	if [ $late -gt 0 ]; then
		rest 0.5
		[ $armed = 0 ] && [ -e $out/arm ] && { armed=1; echo $late >$T/osnoise/stop_tracing_total_us; }
		read -r on <$I/tracing_on
		[ $on = 1 ] || { mv $out/started $out/late; break; }
	else
		rest 2
		drain $quarter
		[ $((kept / 256)) -lt $most ] || { echo full >$out/full; break; }
	fi
	now
done
echo 0 >$I/tracing_on
drain all
cost
for c in $list; do cp $I/per_cpu/cpu$c/stats $out/cpu$c.stats; done
trap - EXIT
ended
cd $out && tar cf - header_page cost *.format *.stats *.raw | gzip -1 >%(archive)s && rm -f *.raw && echo done >done
"""
    % {"events": _EVENTS, "archive": ARCHIVE, "marker": _MARKER}
)


def start(
    guest: str,
    seconds: float,
    vcpus: Sequence[int],
    period_us: int = 1000,
    buffer_kb: int = 4096,
    most_mb: int = 64,
    late_us: int = 0,
    limit_s: float = 90.0,
) -> dict[str, Any]:
    """Operation: start recording in ``guest`` and return when it records; one that still boots is waited for.

    It stops by itself after ``seconds``.  ``late_us``: freeze the rings at the first sample that is later, from
    :func:`arm` on, and keep what they hold; 0: keep everything.
    Raises ENOTCONN without an agent, EOPNOTSUPP with the guest's words when its kernel or image cannot.
    """
    words = [str(int(seconds + 0.999)), str(int(period_us)), ",".join(str(int(v)) for v in vcpus)]
    words += [str(int(number)) for number in (buffer_kb, most_mb, late_us)]
    return {"pid": start_script(guest, SCRIPT, words, limit_s)}


def start_script(guest: str, script: str, words: Sequence[str], limit_s: float) -> int:
    """Start a script that begins as :data:`SETUP` does, and return its process there when it says ``started``."""
    begun = time.monotonic()
    pid = None
    while pid is None:
        try:
            pid = guest_start(guest, ["/bin/sh", "-c", _SHELL, "evenkeel", script, *words])
        except OSError as error:  # a guest that boots has no agent yet
            if error.errno != errno.ENOTCONN or time.monotonic() - begun > limit_s:
                raise
            time.sleep(1.0)
    while True:
        _check(guest, pid)
        if _exists(guest, "started"):
            return pid
        if time.monotonic() - begun > limit_s:
            raise OSError(errno.ETIMEDOUT, "timerlat did not start within %.0f s in guest %s" % (limit_s, guest))
        time.sleep(0.2)


def arm(guest: str) -> None:
    """From now on, half a second at most, a late sample ends the recording.  Raises ENOTCONN without an agent."""
    handle = agent(guest, "guest-file-open", path=FOLDER + "/arm", mode="w")
    agent(guest, "guest-file-close", handle=handle)


def stamp(guest: str, number: int, on_edge: Callable[[], None], limit_s: int) -> None:
    """Write the mark ``evenkeel NUMBER`` into the guest's recording; ``on_edge`` is called just before and just after.

    The agent keeps what it is told to write in its buffer until it is told to flush that (QEMU: guest-file-flush), so
    the flush alone lies between the two.  The marker is held no longer than that takes: who holds it holds the trace
    instance.  Raises OSError when the guest does not record, or its agent does not answer within ``limit_s``.
    """
    text = base64.b64encode(b"evenkeel %d\n" % number).decode()
    handle = agent(guest, "guest-file-open", limit_s, path="%s/%s" % (FOLDER, _MARKER), mode="w")
    try:
        agent(guest, "guest-file-write", limit_s, handle=handle, **{"buf-b64": text})
        agent(guest, "guest-file-flush", limit_s, on_edge, handle=handle)
    finally:
        agent(guest, "guest-file-close", limit_s, handle=handle)


def stop(guest: str, pid: int, limit_s: float = 120.0, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Operation: end the recording now and wait for its archive: ``{"full": bool}``."""
    handle = agent(guest, "guest-file-open", path=FOLDER + "/stop", mode="w")
    agent(guest, "guest-file-close", handle=handle)
    begun = time.monotonic()
    while not _exists(guest, "done"):
        _check(guest, pid)
        spent = time.monotonic() - begun
        if spent > limit_s:
            raise OSError(errno.ETIMEDOUT, "the recording did not end within %.0f s in guest %s" % (limit_s, guest))
        if on_progress:
            on_progress(int(spent * 10), int(limit_s * 10), "the guest ends its recording")
        time.sleep(0.3)
    return {"full": _exists(guest, "full")}


def happened(guest: str, limit_s: int = 20) -> str | None:
    """What ends a flight: ``late sample`` in the guest, ``guest gone`` when it does not run, or no longer records.

    One that has booted again has nothing of its recording left.  Raises ENOTCONN when the agent does not answer within
    ``limit_s``.
    """
    try:
        if _exists(guest, "started", limit_s):
            return None
        return "late sample" if _exists(guest, "late", limit_s) else "guest gone"
    except OSError:
        if guest_state(guest)["state"] == "running":
            raise
        return "guest gone"


def file(guest: str, name: str = ARCHIVE, offset: int = 0) -> dict[str, Any]:
    """Operation: a piece of a file of the recording: ``data`` (base64) and ``next`` offset, None at the end.

    The archive is a compressed tar of the pages ``cpuN.raw``, ``cpuN.stats``, ``SYSTEM:EVENT.format``, ``header_page``,
    and ``cost``: at the begin and at the end a line of uptime, nanoseconds of timerlat's threads (``-``: not told), and
    the recorder's /proc/PID/stat after its name.

    Raises ENOENT when there is no such file.
    """
    if "/" in name:
        raise OSError(errno.EINVAL, "not the name of a file of a recording: %r" % name)
    data = guest_file(guest, "%s/%s" % (FOLDER, name), offset, _PIECE)
    return {"data": base64.b64encode(data).decode(), "next": offset + len(data) if len(data) == _PIECE else None}


def clean(guest: str) -> None:
    """Operation: remove the files of a recording from the guest."""
    guest_start(guest, ["/bin/rm", "-rf", FOLDER])


def clock(guest: str) -> dict[str, Any]:
    """Operation: how KVM makes the time stamp counter of a guest from that of the host.

    ``offsets``: vCPU -> number to be added (modulo 2**64) after scaling; ``ratio`` and ``fraction_bits``: None where
    the counter is not scaled.  Empty offsets without KVM, or without debugfs.
    """
    pid = qemu_pid(guest)
    if pid is None:
        raise OSError(errno.ESRCH, "no QEMU process of a guest named %r" % guest)
    root = "/sys/kernel/debug/kvm"
    offsets: dict[str, int] = {}
    ratio = bits = None
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        if not name.startswith("%d-" % pid):
            continue
        for vcpu in sorted(os.listdir("%s/%s" % (root, name))):
            folder = "%s/%s/%s" % (root, name, vcpu)
            if not vcpu.startswith("vcpu"):
                continue
            offset = _number(folder + "/tsc-offset")
            if offset is not None:
                offsets[vcpu[4:]] = offset
            ratio = _number(folder + "/tsc-scaling-ratio")
            bits = _number(folder + "/tsc-scaling-ratio-frac-bits")
    return {"offsets": offsets, "ratio": ratio, "fraction_bits": bits}


def _number(path: str) -> int | None:
    try:
        with open(path) as handle:
            return int(handle.read())
    except (OSError, ValueError):
        return None


def _exists(guest: str, name: str, limit_s: int = 20) -> bool:
    try:
        handle = agent(guest, "guest-file-open", limit_s, path="%s/%s" % (FOLDER, name), mode="r")
    except OSError as error:
        if error.errno == errno.EPROTO:
            return False
        raise
    agent(guest, "guest-file-close", limit_s, handle=handle)
    return True


def has_ended(guest: str, pid: int) -> bool:
    """Whether the script that began as :data:`SETUP` has left what it was to leave.

    Raises EOPNOTSUPP with the guest's own words when it has failed.
    """
    _check(guest, pid)
    return _exists(guest, "done")


def _check(guest: str, pid: int) -> None:
    """Raise EOPNOTSUPP with the guest's own words when its script has failed."""
    status = agent(guest, "guest-exec-status", pid=pid)
    if status.get("exited") and status.get("exitcode") != 0:
        try:
            said = base64.b64decode(file(guest, "failed")["data"]).decode(errors="replace").strip()
        except OSError:
            said = base64.b64decode(status.get("err-data", "")).decode(errors="replace").strip() or "no reason given"
        raise OSError(errno.EOPNOTSUPP, "guest %s: %s" % (guest, said))
