"""Causes of late samples, put in at known times: a program for the host, and shell lines for the guest.

Each injection writes ``inject begin`` and ``inject end`` into the running trace, on the side on which it happens, so
the truth lies in the recording itself, on its own clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.documents.explanation import Kind
from evenkeel.measure.explain.attribute import Stage
from evenkeel.measure.explain.clocks import Clock
from evenkeel.measure.explain.score import Injection
from evenkeel.measure.explain.trace import Trace

#: The program for the host.  Arguments: what, times, pid of QEMU, tid of the real-time vCPU, cgroup of the guest.
HOST = r"""
import glob, os, subprocess, sys, time

what, times, qemu, tid, scope = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
cpu = min(os.sched_getaffinity(tid))
vcpu, emulator = scope + "/vcpu1", scope + "/emulator"

def recorder():
    "The instance of the recorder, when it records: a new one is on too, and has no events yet."
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for one in glob.glob("/sys/kernel/tracing/instances/evenkeel-*"):
            try:
                if open(one + "/set_event").read().strip() and open(one + "/tracing_on").read().strip() == "1":
                    return one
            except OSError:
                pass  # one that is just made, or removed
        time.sleep(0.05)
    sys.exit("nobody records")

instance = recorder()
marker = os.open(instance + "/trace_marker", os.O_WRONLY)

def mark(text):
    os.write(marker, ("inject %s\n" % text).encode())

def put(path, text):
    with open(path, "w") as file:
        file.write(str(text))

def spin(ms):
    until = time.monotonic() + ms / 1000
    while time.monotonic() < until:
        pass

def spins(thread):
    "Wait until it does: the program in the guest is started beside us, and late where the machine is busy."
    def ran():
        return int(open("/proc/%d/schedstat" % thread).read().split()[0])
    until = time.monotonic() + 60
    while time.monotonic() < until:
        at, before = time.monotonic_ns(), ran()
        time.sleep(0.3)
        if ran() - before > 0.9 * (time.monotonic_ns() - at):
            return
    sys.exit("the vCPU does not spin")

home = open("/proc/self/cgroup").read().strip().partition("::")[2], os.sched_getaffinity(0)

def leave():
    "Where it came from: whoever stays on that CPU disturbs there, at ordinary priority too."
    put("/sys/fs/cgroup" + home[0] + "/cgroup.procs", 0)
    os.sched_setaffinity(0, home[1])

def join():
    "Only the cgroup of the vCPU may use its CPU; a threaded one takes threads of its domain only."
    domain = scope
    while open(domain + "/cgroup.type").read().strip() == "threaded":
        domain = os.path.dirname(domain)
    put(domain + "/cgroup.procs", 0)
    put(vcpu + "/cgroup.threads", 0)
    os.sched_setaffinity(0, {cpu})

def fifo(pid, priority):
    os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(priority))

def other(pid):
    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))

def name(text):
    put("/proc/self/comm", text)

def host_hog():
    "A task at FIFO 50 on the vCPU's CPU."
    name("ek-hog")
    for _ in range(times):
        time.sleep(0.6)
        mark("begin")
        join()
        fifo(0, 50)
        time.sleep(0.002)  # the scheduler tells a priority when it switches to who has it
        spin(9)
        other(0)
        leave()
        mark("end")

def emulator_thread():
    "The main thread of QEMU is put on the vCPU's CPU, at FIFO 50, and asked for something long."
    for _ in range(times):
        time.sleep(0.6)
        mark("begin")
        put(vcpu + "/cgroup.threads", qemu)
        fifo(qemu, 50)
        subprocess.run(["virsh", "-q", "qemu-monitor-command", "plc", "--hmp", "info mtree -f"], stdout=-3, check=True)
        other(qemu)
        put(emulator + "/cgroup.threads", qemu)
        mark("end")

def migrated():
    "The vCPU is moved to the CPUs of the emulator, where tasks at FIFO 50 are."
    cpus = os.sched_getaffinity(qemu)
    for _ in range(times):
        time.sleep(0.6)
        children = []
        for one in cpus:
            child = os.fork()
            if not child:
                name("ek-crowd")
                os.sched_setaffinity(0, {one})
                time.sleep(0.05)
                fifo(0, 50)
                spin(12)
                os._exit(0)
            children.append(child)
        time.sleep(0.02)
        mark("begin")
        put(emulator + "/cgroup.threads", tid)
        for child in children:
            os.waitpid(child, 0)
        put(vcpu + "/cgroup.threads", tid)
        os.sched_setaffinity(tid, {cpu})
        mark("end")

def interrupts():
    "The CPU of the vCPU is asked for its cpuid over and over, each time by an interrupt."
    subprocess.run(["modprobe", "cpuid"], check=True)
    device = os.open("/dev/cpu/%d/cpuid" % cpu, os.O_RDONLY)
    for _ in range(times):
        time.sleep(0.6)
        mark("begin")
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            os.pread(device, 4096, 0)
        mark("end")

def page_faults():
    "KVM is told to forget how the memory of its guests is mapped, which it does when huge pages may not be run from."
    switch = "/sys/module/kvm/parameters/nx_huge_pages"
    before = open(switch).read().strip()
    for number in range(times):
        time.sleep(0.6)
        mark("begin")
        put(switch, "off" if number % 2 else "force")
        time.sleep(0.03)
        mark("end")
    put(switch, "off" if before in "N0" else "auto")

def throttled():
    "An ordinary task on the CPU of a vCPU that spins: the fair server gives it its share."
    name("ek-fair")
    spins(tid)
    server = "/sys/kernel/debug/sched/fair_server/cpu%d/runtime" % cpu
    before = open(server).read().strip()
    put(server, 50000000)
    for _ in range(times):
        time.sleep(0.2)
        mark("begin")
        join()
        spin(2000)
        leave()
        mark("end")
    put(server, before)

globals()[what]()
"""

#: What is injected in the guest waits on the host for this: the guest records first.
HOST_RECORDS = r"""
# Not -s: files of tracefs say that they are empty.
for n in $(seq 600); do
	for I in /sys/kernel/tracing/instances/evenkeel-*; do
		[ -f $I/set_event ] && [ "$(cat $I/set_event)" ] && [ "$(cat $I/tracing_on)" = 1 ] && exit 0
	done
	sleep 0.1
done
echo "nobody records" >&2
exit 1
"""
#: Shell lines for the guest; ``inject`` writes the marks.  Its timerlat runs on vCPU 1.
GUEST = r"""
I=$(ls -d /sys/kernel/tracing/instances/evenkeel-*)
inject() { echo "inject $1" >$I/trace_marker; }
"""
GUEST_HOG = r"""
for n in 1 2 3 4 5; do
	sleep 0.6
	inject begin
	chrt -f 99 taskset 2 sh -c 'i=0; while [ $i -lt 600 ]; do i=$((i+1)); done'
	inject end
done
"""
#: All CPUs are asked where they are, by NMI, and what they print is formatted within it.  To make that long, each call
#: on the way is traced with its stack, which is set up before the recording begins.
GUEST_NMI = r"""
for n in 1 2 3 4 5; do
	sleep 0.6
	inject begin
	taskset 1 sh -c 'echo l >/proc/sysrq-trigger'
	inject end
done
"""
GUEST_NMI_BEFORE = r"""
cd /sys/kernel/tracing
[ -e current_tracer ] || mount -t tracefs tracefs .
echo >set_ftrace_filter
for one in vsnprintf format_decode 'string*' number 'prb_*' 'desc_*' 'data_*'; do
	echo "$one" >>set_ftrace_filter || true # not every kernel has each of them
done
grep -q prb_ set_ftrace_filter # one that is empty would trace everything
echo function >current_tracer
echo 1 >options/func_stack_trace
"""
GUEST_NMI_AFTER = r"""
cd /sys/kernel/tracing
echo 0 >options/func_stack_trace
echo nop >current_tracer
echo >set_ftrace_filter
"""
#: Ports where nothing is, which QEMU has to say: hundreds of exits in one system call of somebody before timerlat.
GUEST_EXITS = r"""
for n in 1 2 3 4 5; do
	sleep 0.6
	inject begin
	taskset 2 chrt -f 99 dd if=/dev/port of=/dev/null bs=256 skip=32 count=1 2>/dev/null
	inject end
done
"""
#: What ends it must not need the CPU that it never gives away.
GUEST_SPIN = r"""
inject begin
timeout 16 chrt -f 90 taskset 2 sh -c 'while :; do :; done'
"""
#: What a program that is started on the vCPU does besides what it was started for: that is no other cause.
_PROGRAM = r"guest_thread (sh|chrt|taskset|dd|sleep|timeout)|exits CPUID|page_fault"


@dataclass(frozen=True)
class Case:
    """One cause, injected so many ``times``.  ``host``: name of a function of the program; ``guest``: shell lines;
    ``before`` and ``after``: others, around the recording.

    ``kinds`` and ``who``: what an explanation must call it; ``besides``: what it may name too, which does not find it.
    """

    name: str
    kinds: frozenset[Kind]
    who: str = ""
    times: int = 0
    besides: str = ""
    host: str = ""
    guest: str = ""
    before: str = ""
    after: str = ""
    seconds: float = 16.0


CASES = (
    Case("nothing", frozenset()),
    Case("hog on the host", frozenset({Kind.waits}), "ek-hog", 6, host="host_hog"),
    Case("hog in the guest", frozenset({Kind.guest_thread}), "sh|taskset|chrt", 5, _PROGRAM, guest=GUEST_HOG),
    Case(
        "NMI in the guest",
        frozenset({Kind.guest_nmi}),
        "",
        5,
        _PROGRAM,
        guest=GUEST_NMI,
        before=GUEST_NMI_BEFORE,
        after=GUEST_NMI_AFTER,
    ),
    Case("emulator thread", frozenset({Kind.emulator}), "", 4, host="emulator_thread"),
    Case("vCPU migrated", frozenset({Kind.migrated}), "", 5, host="migrated"),
    Case("interrupt burst", frozenset({Kind.host_irq}), "call_function", 6, host="interrupts"),
    Case("page faults", frozenset({Kind.page_fault}), "", 6, host="page_faults"),
    Case("exit storm", frozenset({Kind.exits}), "I/O port", 5, _PROGRAM, guest=GUEST_EXITS),
    Case(
        "throttling",
        frozenset({Kind.throttled}),
        "ek-fair",
        3,
        _PROGRAM + "|waits ek-fair",
        host="throttled",
        guest=GUEST_SPIN,
        seconds=24.0,
    ),
)


def injections(on: Stage, case: Case) -> list[Injection]:
    """When this case was injected, as the marks in the recording say."""
    found = []
    for trace, clock in ((on.host, on.host_clock), (on.guest, on.guest_clock)):
        begins = _marked(trace, clock, "inject begin")
        ends = _marked(trace, clock, "inject end")
        found += [
            Injection(case.name, case.kinds, case.who, begin, end, case.besides)
            for begin, end in zip(begins, ends, strict=False)
        ]
    return found


def _marked(trace: Trace, clock: Clock, words: str) -> list[int]:
    at = clock.ns(trace.table("ftrace/print")["at"]).tolist()
    texts = trace.texts("ftrace/print", "buf")
    return [time for time, text in zip(at, texts, strict=True) if text.strip() == words]
