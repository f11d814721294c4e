"""The reference pages say what the program does: no verb, key or exit code is missing or made up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from tools.reference import PAGES

from evenkeel import errors
from evenkeel.cli import root
from evenkeel.documents import site
from evenkeel.plan.sitefile import parse_site

DOCS = Path(__file__).parents[1] / "docs"
SITE_FILE = (DOCS / "reference" / "site-file.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_fresh(page: str) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert text == PAGES[page](), "the program says something else by now: make reference"


def test_make_writes_every_generated_page() -> None:
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    assert f"for page in {' '.join(PAGES)};" in makefile


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("Top", site.Site),
        ("A host", site.HostWish),
        ("An override", site.Override),
        ("A consent", site.Consent),
        ("A guest", site.GuestWish),
        ("A data plane", site.DataPlane),
        ("A host among many", site.HostPlace),
        ("A guest among many hosts", site.PlaceWish),
        ("Functions", site.FunctionWish),
        ("Limits of placing", site.Placing),
        ("Cells", site.CellWish),
        ("Boot", site.Boot),
        ("A disk", site.Disk),
        ("A network", site.Network),
    ],
)
def test_every_key_of_a_site_file_is_described(heading: str, model: type[BaseModel]) -> None:
    section = re.search(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", SITE_FILE, re.MULTILINE | re.DOTALL)
    assert section, heading
    rows = re.findall(r"^\| `(\w+)` \| (?:(required)\b)?", section[1], re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in model.model_fields if name != "kind"]
    if heading in ("Top", "A host", "A guest", "Cells", "Boot", "A disk"):
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        conditional = {"version"} if model is site.Site else set()
        assert {name for name, word in rows if word} == required | conditional


def test_the_examples_of_the_site_file_are_right() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", SITE_FILE, re.DOTALL)
    head = "version: 1\nhosts:\n  cell:\n    address: local\n"
    first, data_plane, override, consent, host, halves, uneven, guest_place, placing, anchors = blocks
    parse_site(first, file="site-file.md")
    assert parse_site(head + host, file="site-file.md").hosts["cell"].place.rack == "r1"
    assert parse_site(head + placing, file="site-file.md").placing.max_hosts == 4
    for block in (data_plane, override, consent):
        parse_site(head + "    " + block.replace("\n", "\n    ").rstrip() + "\n", file="site-file.md")
    assert parse_site(head + halves, file="site-file.md").guests["hana"].numa == 2
    guest = "guests:\n  g:\n    goal: performance\n    disks: [{ path: /d }]\n"
    one = "    vcpus: 1\n    memory: 1GiB\n"
    assert parse_site(head + guest + one + guest_place, file="site-file.md").guests["g"].place.apart == ("upf",)
    assert len(parse_site(head + guest + uneven, file="site-file.md").guests["g"].cells) == 2
    guests = parse_site(head + anchors, file="site-file.md").guests
    assert guests["line-3"].memory == 2 * guests["line-2"].memory


def test_every_exit_code_is_described() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    described = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    known = {value for module in (errors, root) for name, value in vars(module).items() if name.startswith("EXIT_")}
    assert described == known | {130}  # Ctrl-C is answered in cli/__init__.py, before anything is loaded


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*sorted((DOCS / "reference").glob("*.md")), DOCS / "explanation" / "dependencies.md"]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor[1:] in {heading.lower().replace(" ", "-") for heading in headings}, f"{target}{anchor}"


def test_every_consent_is_described() -> None:
    section = SITE_FILE.partition("### A consent")[2].partition("### A host among many")[0]
    assert re.findall(r"^\| `([\w:-]+)` \| \w", section, re.MULTILINE)[1:] == list(get_args(site.ConsentKey))
