"""GRUB's environment block (grubenv): 1024 bytes, a variable a line, filled up with ``#``.  Pure text.

GRUB itself writes it while booting (boot_success, saved_entry), so only one variable is ever set, and a whole old block
is put back only where nothing else changed.  Source: GRUB manual, "The GRUB environment block".
"""

from __future__ import annotations

import errno
import re

from evenkeel.probe.failure import StepFailed

SIZE = 1024
_VARIABLE = re.compile(rb"^(?P<name>[^=#\n]+)=(?P<value>.*)$", re.MULTILINE)


def variables(block: bytes | None) -> dict[str, str]:
    found = {}
    for match in _VARIABLE.finditer(block or b""):
        value = re.sub(rb"\\(.)", rb"\1", match.group("value"))
        found[match.group("name").decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def with_variable(block: bytes, name: str, value: str, where: str) -> bytes:
    """``block`` with one variable changed; every other byte stays where it is, but for the filling.

    Raises StepFailed when it does not fit: GRUB would not read the block at all.
    """
    line = ("%s=%s" % (name, value.replace("\\", "\\\\").replace("\n", "\\\n"))).encode()
    body = block.rstrip(b"#")
    changed, count = re.subn(rb"^%s=.*$" % re.escape(name.encode()), lambda match: line, body, flags=re.MULTILINE)
    if not count:
        changed = body + (b"" if body.endswith(b"\n") else b"\n") + line + b"\n"
    size = max(SIZE, len(block))
    if len(changed) > size:
        raise StepFailed(
            "the kernel command line does not fit: GRUB keeps it in a block of %d bytes, and with the plan that would "
            "have %d; take arguments that nobody needs out of %s, or shorten the lists of CPUs"
            % (size, len(changed), name),
            errno.E2BIG,
            where,
        )
    return changed + b"#" * (size - len(changed))
