"""Debian's kernel headers of any of its architectures, unpacked in the cache: enough to build a module for it.

``python -m evenkeel.lab.kernel_headers arm64`` prints the folder.  Nothing is installed and apt's own state is not
touched: the packages come through the mirrors that this machine's apt uses.  The helpers that run during a build
(modpost, fixdep) are those of this machine's architecture; what they read and write is the other one's.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import EvenkeelError, NotAsWanted, WrongInput
from evenkeel.machines.virtual import apt
from evenkeel.machines.virtual.image import ensure, locked
from evenkeel.machines.virtual.places import cache_dir
from evenkeel.machines.virtual.run import run, tool

#: After so long the archive is asked whether there is a newer kernel.
_FRESH_S = 86_400
#: Instead of a release: that of the PREEMPT_RT kernel which virtual hosts boot.
VIRTUAL = "virtual"


@dataclass(frozen=True)
class Port:
    """An architecture of Debian: what its kernel is called there, in the kernel's sources, and by its compiler."""

    flavour: str
    kernel: str
    triplet: str


#: Architectures of Debian 12 whose kernel takes modules.
PORTS = {
    "amd64": Port("amd64", "x86", "x86_64-linux-gnu"),
    "arm64": Port("arm64", "arm64", "aarch64-linux-gnu"),
    "armhf": Port("armmp", "arm", "arm-linux-gnueabihf"),
    "i386": Port("686-pae", "x86", "i686-linux-gnu"),
    "ppc64el": Port("powerpc64le", "powerpc", "powerpc64le-linux-gnu"),
    "s390x": Port("s390x", "s390", "s390x-linux-gnu"),
}


@dataclass(frozen=True)
class Headers:
    """``release``: as ``uname -r`` prints it there; ``folder``: for ``make -C``."""

    release: str
    folder: Path


def headers(architecture: str, release: str = "", flavour: str = "", cache: Path | None = None) -> Headers:
    """The headers of this release, or of the newest one in Debian 12; fetched (12 MB) when they are not in the cache.

    ``flavour``: ``rt-amd64`` or ``cloud-amd64``, of the newest; the usual one when left out.
    Raises WrongInput for an architecture that Debian has no such kernel for, Unreachable or NotAsWanted as
    :func:`evenkeel.machines.virtual.run.run` when the archive does not answer and nothing is cached.
    """
    if architecture not in PORTS:
        raise WrongInput(f"no headers for {architecture!r}", hint=f"one of {', '.join(PORTS)}")
    if release == VIRTUAL:
        release = virtual_release()
    if release and not re.fullmatch(r"[0-9][\w.+~-]*", release):
        raise WrongInput(f"{release!r} is no release of a kernel", hint="as in 6.1.0-30-amd64")
    flavour = flavour or PORTS[architecture].flavour
    if not re.fullmatch(r"[a-z0-9.-]+", flavour):
        raise WrongInput(f"{flavour!r} is no flavour of a kernel", hint="as in rt-amd64")
    cache = cache or cache_dir() / "kernel-headers"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / ".lock", None, "waiting for another download of kernel headers"):
        newest = cache / f"{architecture}.{flavour}.newest"
        fresh = newest.exists() and abs(time.time() - newest.stat().st_mtime) < _FRESH_S
        known = release or (newest.read_text().strip() if fresh else "")
        if known and (found := _cached(cache, known)):
            return found
        for leftover in cache.glob(".fetch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            made = _fetch(architecture, release, flavour, cache)
        except EvenkeelError:
            if not release and newest.exists() and (found := _cached(cache, newest.read_text().strip())):
                return found  # the archive is away; yesterday's are as good
            raise
        if not release:
            newest.write_text(made.release + "\n")
        return made


def virtual_release() -> str:
    """The release of the PREEMPT_RT kernel in the image of virtual hosts, which is built when there is none."""
    packages = json.loads((ensure().folder / "packages.json").read_text())
    found = [name for name in packages if re.fullmatch(r"linux-image-[\d.]+\d\S*-rt-amd64", name) and "+" in name]
    return str(max(found)).removeprefix("linux-image-")


def _cached(cache: Path, release: str) -> Headers | None:
    folder = cache / release / "usr/src" / f"linux-headers-{release}"
    return Headers(release, folder) if folder.is_dir() else None


def _fetch(architecture: str, release: str, flavour: str, cache: Path) -> Headers:
    work = cache / f".fetch-{architecture}"
    native = subprocess.run([tool("dpkg"), "--print-architecture"], capture_output=True, text=True, check=True)
    here = native.stdout.strip()
    try:
        work.mkdir()
        options = apt.private_apt(work, apt.lines(apt.sources()))
        options += ["-o", f"APT::Architecture={here}", "-o", f"Dir::State::status={work}/status"]
        for each in dict.fromkeys((here, architecture)):
            options += ["-o", f"APT::Architectures::={each}"]
        (work / "status").touch()
        # One archive of several that is half-way through its own update is no reason to stop: what the others have is
        # enough, or is missed below.
        trouble: EvenkeelError | None = None
        try:
            run([tool("apt-get"), *options, "-q", "update"], what="read the list of Debian packages")
        except NotAsWanted as error:
            trouble = error
        try:
            release = release or _newest(architecture, flavour, options)
        except WrongInput as error:
            raise trouble or error from None
        wanted = [f"linux-headers-{release}:{architecture}"]
        # The part that flavours share: -common, or -common-rt.
        wanted.append(_depends(wanted[0], options, r"linux-headers-[\w.+-]+-common(?:-\w+)?"))
        kbuild = _depends(wanted[0], options, r"linux-kbuild-[\w.+-]+")
        wanted.append(f"{kbuild}:{here}")
        archives = work / "archives"
        run([tool("apt-get"), *options, "-q", "download", *wanted], what=f"fetch {wanted[0]}", cwd=archives)
        root = work / "root"
        for package in sorted(archives.glob("*.deb")):
            run([tool("dpkg-deb"), "-x", str(package), str(root)], what=f"unpack {package.name}")
        folder = root / "usr/src" / f"linux-headers-{release}"
        makefile = folder / "Makefile"
        # The one absolute path: the build leaves from the common part, which is beside it wherever both are.
        text = makefile.read_text().replace("/usr/src/", "$(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)/")
        makefile.write_text(text)
        shutil.rmtree(cache / release, ignore_errors=True)
        root.rename(cache / release)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = _cached(cache, release)
    assert found is not None
    return found


def _newest(architecture: str, flavour: str, options: list[str]) -> str:
    package = f"linux-headers-{flavour}:{architecture}"
    name = _depends(package, options, r"linux-headers-[0-9][\w.+-]+")
    return name.removeprefix("linux-headers-")


def _depends(package: str, options: list[str], pattern: str) -> str:
    """The name of the dependency of ``package`` that looks like this."""
    shown = subprocess.run([tool("apt-cache"), *options, "show", package], capture_output=True, text=True, check=False)
    match = re.search(rf"^Depends:.*?\b({pattern})", shown.stdout, re.MULTILINE)
    if not match:
        raise WrongInput(f"Debian's archive has no {package}", hint="leave the release out for the newest one")
    return match[1]


def main() -> int:
    """What a step calls: assignments for a shell on standard output, an error on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=PORTS)
    parser.add_argument("--release", default="")
    parser.add_argument("--flavour", default="")
    words = parser.parse_args()
    try:
        found = headers(words.architecture, words.release, words.flavour)
    except EvenkeelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    port = PORTS[words.architecture]
    words_of = {"HEADERS": found.folder, "RELEASE": found.release, "KERNEL_ARCH": port.kernel, "TRIPLET": port.triplet}
    print("\n".join(f"{name}={shlex.quote(str(value))}" for name, value in words_of.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
