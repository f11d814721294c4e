"""The serial console of a running host, on this terminal, until Ctrl-] is typed.

Must leave the terminal as it found it, however it ends.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import tty

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.machines.virtual import lifecycle, qemu

#: Ctrl-], as in telnet and virsh console.
ESCAPE = b"\x1d"


def attach(name: str) -> None:
    """Connect this terminal with the host's console.  Raises WrongInput (no terminal), Unreachable (not running)."""
    lifecycle.ssh_target(name)
    if not sys.stdin.isatty():
        raise WrongInput("a console needs a terminal", hint=f"evenkeel virtual ssh {name} -- COMMAND runs a command")
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    line = qemu.connect(lifecycle.folder_of(name), "console.sock")
    before = termios.tcgetattr(keyboard)
    try:
        line.settimeout(None)
        tty.setraw(keyboard)
        line.sendall(b"\r")  # a prompt, so that an idle console shows that it lives
        while True:
            ready, _, _ = select.select([keyboard, line], [], [])
            if line in ready:
                data = line.recv(4096)
                if not data:
                    raise Unreachable(f"virtual host {name} has stopped")
                os.write(screen, data)
            if keyboard in ready:
                typed = os.read(keyboard, 1024)
                if not typed or ESCAPE in typed:
                    return
                line.sendall(typed)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        line.close()
