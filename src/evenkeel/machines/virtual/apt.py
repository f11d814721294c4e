"""Debian packages for the cache and the image, from the mirrors that this machine's apt already uses.

Works on private lists and a private archive folder: the machine's own apt state is never touched, nothing is
installed.  Must not name a mirror: a site with its own mirror has it in its sources.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import WrongInput

#: The release that virtual hosts run, whatever release this machine runs.
RELEASE = "bookworm"
_RELEASES = ("bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable")


@dataclass(frozen=True)
class Source:
    """One archive: ``uri``, its suite without the release name (``""``, ``-updates``, ``-security``)."""

    uri: str
    suffix: str
    options: tuple[tuple[str, str], ...]  #: as in a one-line source: (("signed-by", "/usr/share/..."),)

    def line(self, suite: str) -> str:
        options = " ".join(f"{key}={value}" for key, value in self.options)
        return f"deb {f'[{options}] ' if options else ''}{self.uri} {suite} main"


def sources(root: Path = Path("/")) -> list[Source]:
    """The Debian archives in ``/etc/apt``, read in both formats.  Raises WrongInput when there are none."""
    found: dict[tuple[str, str], Source] = {}
    folder = root / "etc/apt"
    parts = folder / "sources.list.d"
    files = [folder / "sources.list", *sorted(parts.iterdir() if parts.is_dir() else ())]
    for file in files:
        if file.suffix not in (".list", ".sources") or not file.is_file():
            continue
        text = file.read_text(errors="replace")
        for source in _deb822(text) if file.suffix == ".sources" else _one_line(text):
            found.setdefault((source.uri.rstrip("/"), source.suffix), source)
    if not any(source.suffix == "" for source in found.values()):
        raise WrongInput(
            "this machine's apt sources name no Debian archive",
            hint="virtual hosts are built from Debian packages: add Debian's main archive in /etc/apt/sources.list",
        )
    return list(found.values())


def lines(found: list[Source]) -> list[str]:
    """Sources of the release that virtual hosts run."""
    return [source.line(RELEASE + source.suffix) for source in found]


def backports_lines(found: list[Source]) -> list[str]:
    """The same, and the backports of the archives that carry the release itself."""
    return lines(found) + [source.line(RELEASE + "-backports") for source in found if source.suffix == ""]


def _suffix(suite: str) -> str | None:
    """``bookworm-updates`` -> ``-updates``; None where the suite is not one of Debian's that we use."""
    release, dash, rest = suite.partition("-")
    suffix = dash + rest
    return suffix if release in _RELEASES and suffix in ("", "-updates", "-security") else None


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line.startswith("deb "):
            continue
        rest = line[4:].strip()
        options: tuple[tuple[str, str], ...] = ()
        if rest.startswith("["):
            inside, _, rest = rest[1:].partition("]")
            options = tuple(
                (key, value)
                for key, _, value in (word.partition("=") for word in inside.split())
                if key in ("signed-by", "trusted")
            )
        words = rest.split()
        if len(words) >= 3 and "main" in words[2:] and (suffix := _suffix(words[1])) is not None:
            yield Source(words[0], suffix, options)


def _deb822(text: str) -> Iterator[Source]:
    for stanza in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and key:
                fields[key] += " " + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or "main" not in fields.get("components", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        keyring = fields.get("signed-by", "")
        options = (("signed-by", keyring),) if keyring.startswith("/") else ()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                if (suffix := _suffix(suite)) is not None:
                    yield Source(uri, suffix, options)


def private_apt(folder: Path, source_lines: list[str]) -> list[str]:
    """Make a private apt state in ``folder`` and return the options that make ``apt-get`` use it, and only it."""
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text("".join(line + "\n" for line in source_lines))
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "APT::Sandbox::User": "root",  # the folder belongs to the caller, the user _apt cannot write there
        "APT::Get::List-Cleanup": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def quoted(words: list[str]) -> str:
    """For messages: the command as a person would type it."""
    return shlex.join(words)
