"""Write the reference pages that say what the program says of itself, so that there is one text and not two.

``python -m tools.reference cli > docs/reference/cli.md``: the help of every verb; ``rules``: the catalogue of rules;
``doctor``: its findings and the faults that the tests make.
``make reference`` writes all of :data:`PAGES`.  A test holds them fresh.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tools import doctor_reference

from evenkeel.cli.root import VERBS, root_command
from evenkeel.plan.catalogue import DEFINITION, Entry, entries, subjects

WIDTH = 100
HEAD = """\
# The command line

`evenkeel VERB --help` shows the same. This page is made from it by `make reference`.

The verbs follow [the river](../explanation/the-river.md). What they exit with: [exit codes](exit-codes.md).

- The result goes to stdout, everything else to stderr. With `--json` the result is one JSON document.
- A machine is `local`, `ssh://root@HOST[:PORT]`, `virtual:NAME`, or the path of a recorded tree.
- `-` is stdin where a document or a site is read, and stdout where one is written: nothing else goes there then, and
  `-o - --json` is one document.
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


RULES_HEAD = """\
# The rules

Every value in a plan is asked for by one of these rules. `evenkeel rules` lists and searches them,
`evenkeel explain PLAN ID` says what one does in a plan of yours. This page is made by `make reference`.

- A rule applies when a guest with one of its goals is on the host, and when the kernel is in its range.
- *Left alone* means: set only when an [override](site-file.md#an-override) gives it a value.
- *Consent* means: set only with that [consent](site-file.md#a-consent), which no goal implies.
- *No setting of its own* means: the plan does it by other means, which the value names, or nobody can set it from here
  and the plan notes what it found.

The ideas behind them: [why these settings](../explanation/why-these-settings.md).
"""


def rules() -> str:
    """The catalogue: a table of all, then each rule, by subject."""
    found = entries()
    parts = [RULES_HEAD, "| rule | | applies to | consent |\n|---|---|---|---|"]
    parts[-1] += "".join(
        f"\n| [{one.id}](#{one.id.lower()}) | {one.title} | {one.scope} | {f'`{one.consent}`' if one.consent else ''} |"
        for one in found
    )
    parts[-1] += "\n"
    for subject in subjects():
        title = "the definition of a guest" if subject == DEFINITION else subject
        parts.append(f"## Subject: {title}\n")
        parts += [rule_section(one) for one in found if one.subject == subject]
    return "\n".join(parts)


def rule_section(entry: Entry) -> str:
    lines = [f"### {entry.id}\n", f"**{entry.title}**\n", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in entry.lines() if name != "subject"]
    if entry.alternatives:
        lines += ["", "| others set | who | not the default, since |", "|---|---|---|"]
        lines += [f"| {_cell(one.value)} | {_cell(one.by)} | {_cell(one.rejected)} |" for one in entry.alternatives]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


#: Name of the page in docs/reference -> what writes it.
PAGES: dict[str, Callable[[], str]] = {"cli": reference, "rules": rules, "doctor": doctor_reference.page}

if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
