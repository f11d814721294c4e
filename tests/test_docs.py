"""README and docs: every link leads somewhere, every command that they show exists, and no page is unreachable."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from evenkeel.cli.root import VERBS, root_command

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]


def slugs(page: Path) -> set[str]:
    """Anchors of the headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """Every `evenkeel ...` and `make ...` in a code block or in backquotes, as words."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```(?:sh|console|bash)?\n(.*?)```", text, re.DOTALL))
    lines = [line.strip().removeprefix("$ ") for line in blocks.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    found = []
    for line in lines:
        if re.match(r"(evenkeel|make) ", line):
            found.append(shlex.split(line, comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)} links to {link}, which does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in slugs(file), f"{name(page)}: {name(file)} has no heading #{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
        waiting += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert [name(page) for page in PAGES if page not in seen] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, f"{name(page)}: make has no target {words[1]}"
        elif not words[1].startswith("-") and not words[1].isupper():
            assert words[1] in VERBS, f"{name(page)}: there is no `evenkeel {words[1]}`"
            check_options(page, words)


def check_options(page: Path, words: list[str]) -> None:
    command = root_command()
    with command.make_context("evenkeel", [words[1]], resilient_parsing=True) as context:
        _, found, _ = command.resolve_command(context, [words[1]])
    rest = words[2:]
    while isinstance(getattr(found, "commands", None), dict) and rest and rest[0] in found.commands:
        found, rest = found.commands[rest[0]], rest[1:]
    if default := getattr(found, "default", None):  # a command whose name may be left out
        found = found.commands[default]
    for end in ("--", "|"):  # what comes after is another program's
        if end in rest:
            rest = rest[: rest.index(end)]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    for word in rest:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known, f"{name(page)}: `{' '.join(words)}`: no option {word}"


def test_the_checks_see_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](missing.md) `evenkeel plan --frobnicate x`\n```sh\n$ evenkeel conquer # all\n```\n")
    assert links(page) == ["missing.md"]
    assert commands(page) == [["evenkeel", "conquer"], ["evenkeel", "plan", "--frobnicate", "x"]]
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    with pytest.raises(AssertionError, match="no option --frobnicate"):
        check_options(page, ["evenkeel", "plan", "--frobnicate", "x"])
