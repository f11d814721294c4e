"""A guest small enough for a test: one vCPU of real KVM that reads a port for ever, in a process that looks like QEMU.

Each read leaves the guest (an I/O exit), so the process knows to the last one how many exits there were.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

#: KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_GET/SET_SREGS, KVM_SET_REGS,
#: KVM_RUN of include/uapi/linux/kvm.h.  The guest is ``in al, 0x10; jmp back`` at address 0, in real mode.
_GUEST = r"""
import ctypes, fcntl, mmap, os, struct, sys
open("/proc/self/comm", "w").write("qemu-ek-test")
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
size = fcntl.ioctl(kvm, 0xAE04, 0)
memory = mmap.mmap(-1, 0x10000)
memory[0:4] = b"\xe4\x10\xeb\xfc"
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(vm, 0x4020AE46, struct.pack("IIQQQ", 0, 0, 0, 0x10000, place))
vcpu = fcntl.ioctl(vm, 0xAE41, 0)
run = mmap.mmap(vcpu, size)
sregs = bytearray(312)
fcntl.ioctl(vcpu, 0x8138AE83, sregs)
struct.pack_into("<Q", sregs, 0, 0)
struct.pack_into("<H", sregs, 12, 0)
fcntl.ioctl(vcpu, 0x4138AE84, bytes(sregs))
fcntl.ioctl(vcpu, 0x4090AE82, struct.pack("<18Q", *([0] * 16), 0, 2))
fcntl.ioctl(vcpu, 0xAE80, 0)
assert struct.unpack_from("I", run, 8)[0] == 2, "no I/O exit"
print("on", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        fcntl.ioctl(vcpu, 0xAE80, 0)
    os.getppid()
    print("done", flush=True)
"""


class TinyGuest:
    """The process; :meth:`exit` lets its vCPU leave the guest so many times, and calls getppid(2)."""

    def __init__(self, name: str) -> None:
        """Raises OSError where KVM does not work."""
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _GUEST, "-name", f"guest={name},debug-threads=on"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout
        if self._process.stdout.readline() != "on\n":
            self._process.kill()
            raise OSError(self._process.communicate()[1].strip()[-200:])

    def exit(self, times: int) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{times}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def tiny_guest(name: str) -> Iterator[TinyGuest]:
    guest = TinyGuest(name)
    try:
        yield guest
    finally:
        guest.close()
