"""Write docs/reference/cli.md from the help of every verb, so that there is one text and not two.

``python tools/reference.py > docs/reference/cli.md``, or ``make reference``.  A test holds it fresh.
"""

from __future__ import annotations

from typing import Any

from evenkeel.cli.root import VERBS, root_command

WIDTH = 100
HEAD = """\
# The command line

`evenkeel VERB --help` shows the same. This page is made from it by `make reference`.

The verbs follow [the river](../explanation/the-river.md). What they exit with: [exit codes](exit-codes.md).

- The result goes to stdout, everything else to stderr. With `--json` the result is one JSON document.
- A machine is `local`, `ssh://root@HOST[:PORT]`, `virtual:NAME`, or the path of a recorded tree.
- `-` is stdin where a document or a site is read, and stdout where one is written.
- `evenkeel --install-completion` teaches your shell the verbs and options; `--show-completion` prints how.
"""


def help_of(command: Any, call: str) -> str:
    with command.make_context(call, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH) as own:
        return "\n".join(line.rstrip() for line in command.get_help(own).splitlines()).strip()


def reference() -> str:
    root = root_command()
    parts = [HEAD]
    for verb in VERBS:
        context = root.make_context("evenkeel", [verb], resilient_parsing=True)
        _, command, _ = root.resolve_command(context, [verb])
        parts.append(f"## evenkeel {verb}\n\n```text\n{help_of(command, f'evenkeel {verb}')}\n```\n")
        for name, below in getattr(command, "commands", {}).items():
            call = f"evenkeel {verb} {name}"
            parts.append(f"### {call}\n\n```text\n{help_of(below, call)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
