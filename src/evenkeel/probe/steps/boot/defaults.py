"""What we put where grub-mkconfig reads its defaults: shell that owns our keys, and the rescue script.  Pure text.

grub-mkconfig sources /etc/default/grub (Debian and Ubuntu: after it /etc/default/grub.d/*.cfg) as root, then runs the
scripts in /etc/grub.d.  So nothing that a shell could understand may get into these texts from outside.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps.boot.arguments import RESCUE_MARK, words_of

_SAFE = re.compile(r"[A-Za-z0-9_.,:=+@/-]*\Z")
_BEGIN = "# BEGIN evenkeel"
_END = "# END evenkeel"
_BLOCK = re.compile(r"^%s\b.*?^%s\n" % (re.escape(_BEGIN), re.escape(_END)), re.MULTILINE | re.DOTALL)

RESCUE_SCRIPT = "/etc/grub.d/11_evenkeel"
#: Runs the distribution's own script a second time, so that the entries have whatever its entries have, and keeps
#: one entry a kernel.  An error here must never keep a kernel package from being installed, so it ends with 0.
RESCUE_TEXT = r"""#!/bin/sh
# Written by Evenkeel; removed by `evenkeel rollback`.
# A submenu that starts each installed kernel without the arguments that Evenkeel owns.
[ -n "${EVENKEEL_PLAIN+set}" ] && [ -x /etc/grub.d/10_linux ] || exit 0
entries=$(
    export GRUB_CMDLINE_LINUX_DEFAULT="${EVENKEEL_PLAIN:+$EVENKEEL_PLAIN }@MARK@"
    export GRUB_DISABLE_RECOVERY=true GRUB_SAVEDEFAULT=false GRUB_ACTUAL_DEFAULT=
    /etc/grub.d/10_linux 2>/dev/null | awk '
        /^[ \t]*menuentry .*\047gnulinux-[^\047]*-advanced-/ {
            inside = 1
            sub(/menuentry \047/, "menuentry \047Evenkeel rescue: ")
            sub(/\047gnulinux-/, "\047evenkeel-rescue-")
            sub(/-advanced-[^\047]*\047/, "\047")
        }
        inside { print }
        inside && /^[ \t]*}[ \t]*$/ { inside = 0 }
    '
)
[ -n "$entries" ] || exit 0
echo "submenu 'Evenkeel rescue: without the arguments of the plan' \$menuentry_id_option 'evenkeel-rescue' {"
printf '%s\n' "$entries"
echo "}"
""".replace("@MARK@", RESCUE_MARK)


def drop_in(arguments: list[dict[str, Any]]) -> str:
    """The text of a file of our own: POSIX sh, sourced by grub-mkconfig.  Same arguments, same bytes.

    Raises StepFailed for an argument that may not go through a shell.
    """
    for argument in arguments:
        for text in (argument["key"], argument["value"] or "", argument.get("after") or ""):
            if not _SAFE.match(text):
                raise StepFailed("the kernel argument %r has characters that may not go through a shell" % text)
        if not re.match(r"[A-Za-z]", argument["key"]):
            raise StepFailed("%r is not the name of a kernel argument" % argument["key"])
    single = [_pattern(argument["key"]) for argument in arguments if not argument.get("after")]
    paired = [(argument["after"], _pattern(argument["key"])) for argument in arguments if argument.get("after")]
    lines = [
        "# Written by Evenkeel; removed by `evenkeel rollback`.  Sourced by grub-mkconfig after /etc/default/grub.",
        "# Takes the arguments that Evenkeel owns out of what was there, and appends its own.",
        "evenkeel_strip() {",
        "    evenkeel_kept= evenkeel_held= evenkeel_before= evenkeel_quoted=",
        "    set -f",
        "    for evenkeel_word in $1; do",
        # Quotes keep blanks together, so what stands between them is nobody's key.
        "        evenkeel_inside=$evenkeel_quoted evenkeel_rest=$evenkeel_word",
        "        while :; do",
        '            case "$evenkeel_rest" in *\\"*) ;; *) break ;; esac',
        '            evenkeel_rest=${evenkeel_rest#*\\"}',
        '            if [ -n "$evenkeel_quoted" ]; then evenkeel_quoted=; else evenkeel_quoted=1; fi',
        "        done",
        '        if [ -n "$evenkeel_inside$evenkeel_quoted" ]; then',
        '            evenkeel_kept="$evenkeel_kept${evenkeel_held:+ $evenkeel_held} $evenkeel_word"',
        "            evenkeel_held= evenkeel_before=",
        "            continue",
        "        fi",
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
        'export EVENKEEL_PLAIN="$evenkeel_kept"',
        'GRUB_CMDLINE_LINUX_DEFAULT="${evenkeel_kept:+$evenkeel_kept }%s"' % " ".join(words_of(arguments)),
    ]
    return "\n".join(lines) + "\n"


def with_block(arguments: list[dict[str, Any]], text: str) -> str:
    """/etc/default/grub with a marked block of ours as its last lines: for a grub-mkconfig that reads no other file."""
    text = without_block(text)
    if text and not text.endswith("\n"):
        text += "\n"
    return "%s%s: what stands between these two lines is replaced\n%s%s\n" % (text, _BEGIN, drop_in(arguments), _END)


def without_block(text: str) -> str:
    return _BLOCK.sub("", text)


def _pattern(key: str) -> str:
    """A shell pattern for ``key`` in either spelling."""
    return re.sub(r"[-_]", "[-_]", key)


def _unique(items: list[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
