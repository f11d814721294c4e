"""Step ``boot``: arguments of the kernel command line, for all installed and all future kernels, through GRUB.

``{"kind": "boot", "arguments": [{"key": "nohz_full", "value": "2-3", "after": null}, ...]}``; value "": a bare flag;
null: only take it away.  ``after``: the argument that stands directly before it (``hugepagesz=2M``).

One file of ours, sourced last by grub-mkconfig (Debian and Ubuntu source /etc/default/grub.d/*.cfg), takes our own
keys out of what other owners wrote and appends ours in the order of the plan; then ``update-grub``.  It is done only
when every generated entry has them.  Entries for recovery are left without: that is the way back in when a machine
does not come up with our arguments.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from evenkeel.probe import command
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.journal import inside
from evenkeel.probe.steps import config
from evenkeel.probe.steps.files import read_value

PERSISTENT = True

DROP_IN = "/etc/default/grub.d/zz-evenkeel.cfg"
GRUB_CFG = "/boot/grub/grub.cfg"
#: The file is sourced by a shell as root, so nothing that a shell could understand may get in.
_SAFE = re.compile(r"[A-Za-z0-9_.,:=+@/-]*\Z")
_SECTION = re.compile(r"### (BEGIN|END) \S*/10_linux ###")
_ENTRY = re.compile(r"\s*menuentry\s.*?'gnulinux-(?P<id>[^']*)'")
_LINUX = re.compile(r"\s*linux(?:16|efi)?\s+(?P<image>\S+)\s*(?P<arguments>.*)")
_UPDATE_TIMEOUT_S = 600.0  # measured: 11 s in software emulation; os-prober on a slow disk array takes minutes


def snapshot(step: dict[str, Any], root: str) -> str:
    """JSON: ``file``: snapshot of the drop-in; ``entries``: command line of each entry; ``sha256`` of grub.cfg.

    Raises StepFailed on a machine whose boot loader is not set this way.
    """
    _require_grub(root)
    text = read_value(GRUB_CFG, root)
    return json.dumps(
        {
            "file": config.snapshot({"path": DROP_IN}, root),
            "entries": entries(text or ""),
            "sha256": hashlib.sha256((text or "").encode()).hexdigest(),
        }
    )


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    """Every entry has all arguments and no other value for them; a drop-in of ours says nothing else."""
    found = json.loads(state or "{}")
    ours = config.content(found["file"])
    if ours is not None and ours.decode("utf-8", "replace") != drop_in(step["arguments"]):
        return False
    lines = found["entries"]
    return bool(lines) and all(not missing(step["arguments"], line["arguments"]) for line in lines)


def shown(step: dict[str, Any], state: str | None) -> str | None:
    found = json.loads(state or "{}")
    lines = {line["arguments"] for line in found.get("entries", [])}
    return " | ".join(sorted(lines)) or None


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    text = drop_in(step["arguments"])
    old = json.loads(config.snapshot({"path": DROP_IN}, root))
    config.replace(DROP_IN, text.encode(), old.get("mode", 0o644), old.get("owner"), root)
    _update(root)
    lines = entries(read_value(GRUB_CFG, root) or "")
    if not lines:
        raise StepFailed("update-grub wrote no entry for a Linux kernel", None, GRUB_CFG)
    for line in lines:
        lacking = missing(step["arguments"], line["arguments"])
        if lacking:
            raise StepFailed(
                "the entry %s lacks %s; does a file sourced after %s, or a changed /etc/grub.d/10_linux, set the "
                "command line?" % (line["id"], " ".join(lacking), DROP_IN),
                None,
                GRUB_CFG,
            )


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    old = json.loads(state or "{}")
    if snapshot(step, root) == state:
        return
    # The drop-in may be back already while grub.cfg is not: a kill between the two.
    config.undo({"path": DROP_IN}, old["file"], root)
    _update(root)


def _require_grub(root: str) -> None:
    try:
        command.find_program("update-grub", root)
    except StepFailed:
        raise StepFailed(
            "the machine has no update-grub; kernel arguments are set through GRUB on Debian and Ubuntu only", 2
        ) from None
    script = read_value("/usr/sbin/grub-mkconfig", root)
    if script is not None and "default/grub.d" not in script:  # a patch of Debian's and Ubuntu's
        raise StepFailed("this grub-mkconfig does not read /etc/default/grub.d", 95, "/usr/sbin/grub-mkconfig")


def _update(root: str) -> None:
    """Generate grub.cfg anew and get it to the disk: update-grub itself does not sync."""
    command.output(["update-grub"], _UPDATE_TIMEOUT_S, root=root)
    descriptor = os.open(inside(root, GRUB_CFG), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries(grub_cfg: str) -> list[dict[str, str]]:
    """Id and arguments of every entry that 10_linux made, without those for recovery."""
    found = []
    ours = False
    name = ""
    for line in grub_cfg.splitlines():
        section = _SECTION.match(line)
        if section:
            ours = section.group(1) == "BEGIN"
            continue
        entry = _ENTRY.match(line)
        if entry:
            name = entry.group("id")
        linux = _LINUX.match(line)
        if ours and linux and "-recovery-" not in name:
            found.append({"id": name, "arguments": " ".join(linux.group("arguments").split())})
    return found


def default_kernel(grub_cfg: str) -> str | None:
    """Release of the kernel that starts when nobody touches the menu; None where that cannot be told from the file.

    It cannot for a saved default (grub-set-default, grub-reboot) and for an entry given by its number in a submenu.
    """
    default = re.findall(r'^\s*set default="([^"]*)"', grub_cfg, re.MULTILINE)
    chosen = [one for one in default if one != "${next_entry}"]  # set for one boot by grub-reboot
    if len(chosen) != 1:
        return None
    named = re.search(r"gnulinux-(\S+)-(?:advanced|recovery)-[^>]*\Z", chosen[0].rpartition(">")[2])
    if named:
        return named.group(1)
    if chosen[0] != "0":
        return None
    first = re.search(r"^\s*linux(?:16|efi)?\s+\S*/vmlinuz-(\S+)", grub_cfg, re.MULTILINE)
    return first.group(1) if first else None


def missing(arguments: list[dict[str, Any]], line: str) -> list[str]:
    """The arguments that ``line`` does not have exactly as wanted: once, with this value, at this place."""
    words = line.split()
    pairs = [(words[index - 1] if index else "", word) for index, word in enumerate(words)]
    lacking = []
    for argument in arguments:
        wanted = word_of(argument)
        found = [word for before, word in pairs if _is_ours(argument, before, word)]
        there = found == ([wanted] if wanted is not None else [])
        if argument.get("after") and wanted is not None:
            there = there and (argument["after"], wanted) in pairs
        if not there:
            lacking.append(" ".join(filter(None, (argument.get("after"), wanted or "(no %s)" % argument["key"]))))
    return lacking


def word_of(argument: dict[str, Any]) -> str | None:
    """``key=value``, the bare ``key``, or None when it is only to be taken away."""
    if argument["value"] is None:
        return None
    return "%s=%s" % (argument["key"], argument["value"]) if argument["value"] else str(argument["key"])


def same_key(word: str, key: str) -> bool:
    """The kernel does not tell ``-`` from ``_`` in the name of a parameter (parameqn() in kernel/params.c)."""
    return word.partition("=")[0].replace("-", "_") == key.replace("-", "_")


def _is_ours(argument: dict[str, Any], before: str, word: str) -> bool:
    """Whether ``word`` is the argument, or what it takes the place of.

    A ``hugepages=`` without a size before it counts too: it means the default size, which a plan sets.
    The count for another size does not.
    """
    if not same_key(word, argument["key"]):
        return False
    after = argument.get("after")
    return not after or before == after or before.partition("=")[0] != after.partition("=")[0]


def drop_in(arguments: list[dict[str, Any]]) -> str:
    """The text of the drop-in: POSIX sh, sourced by grub-mkconfig.  Same arguments, same bytes."""
    for argument in arguments:
        for text in (argument["key"], argument["value"] or "", argument.get("after") or ""):
            if not _SAFE.match(text):
                raise StepFailed("the kernel argument %r has characters that may not go through a shell" % text)
        if not re.match(r"[A-Za-z]", argument["key"]):
            raise StepFailed("%r is not the name of a kernel argument" % argument["key"])
    single = [_pattern(argument["key"]) for argument in arguments if not argument.get("after")]
    paired = [(argument["after"], _pattern(argument["key"])) for argument in arguments if argument.get("after")]
    words = []
    for argument in arguments:
        word = word_of(argument)
        if word is not None:
            words += [argument["after"], word] if argument.get("after") else [word]
    lines = [
        "# Written by Evenkeel; removed by `evenkeel rollback`.  Sourced by grub-mkconfig after /etc/default/grub.",
        "# Takes the arguments that Evenkeel owns out of what was there, and appends its own.",
        "evenkeel_strip() {",
        "    evenkeel_kept= evenkeel_held= evenkeel_before=",
        "    set -f",
        "    for evenkeel_word in $1; do",
        '        evenkeel_pair="$evenkeel_before $evenkeel_word"',
        "        evenkeel_before=$evenkeel_word",
    ]
    if paired:
        sizes = _unique([(after.partition("=")[0], key) for after, key in paired])
        lines += [
            # A size is held back until the next word says whether it is the one of our pair.
            '        if [ -n "$evenkeel_held" ]; then',
            '            case "$evenkeel_pair" in',
            *('            "%s "%s=*) evenkeel_held=; continue ;;' % pair for pair in _unique(paired)),
            "            esac",
            '            evenkeel_kept="$evenkeel_kept $evenkeel_held"; evenkeel_held=',
            "        fi",
            '        case "$evenkeel_word" in',
            *('        "%s") evenkeel_held=$evenkeel_word; continue ;;' % after for after, _ in _unique(paired)),
            "        esac",
            '        case "$evenkeel_pair" in',
            *('        %s=*" "%s=*) ;;' % pair for pair in sizes),
            *('        *" "%s=*) continue ;;' % key for _, key in sizes),
            "        esac",
        ]
    if single:
        lines += [
            '        case "$evenkeel_word" in',
            *("        %s|%s=*) continue ;;" % (key, key) for key in _unique(single)),
            "        esac",
        ]
    lines += [
        '        evenkeel_kept="$evenkeel_kept $evenkeel_word"',
        "    done",
        "    set +f",
        '    evenkeel_kept="$evenkeel_kept${evenkeel_held:+ $evenkeel_held}"',
        '    evenkeel_kept="${evenkeel_kept# }"',
        "}",
        'evenkeel_strip "$GRUB_CMDLINE_LINUX"',
        'GRUB_CMDLINE_LINUX="$evenkeel_kept"',
        'evenkeel_strip "$GRUB_CMDLINE_LINUX_DEFAULT"',
        'GRUB_CMDLINE_LINUX_DEFAULT="${evenkeel_kept:+$evenkeel_kept }%s"' % " ".join(words),
    ]
    return "\n".join(lines) + "\n"


def _pattern(key: str) -> str:
    """A shell pattern for ``key`` in either spelling."""
    return re.sub(r"[-_]", "[-_]", key)


def _unique(items: list[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
