"""Step ``boot``: arguments of the kernel command line, for all installed and all future kernels.

``{"kind": "boot", "arguments": [{"key": "nohz_full", "value": "2-3", "after": null}, ...]}``; value "": a bare flag;
null: only take it away.  ``after``: the argument that stands directly before it (``hugepagesz=2M``).

One module a layout (:data:`LAYOUTS`).  In each of them only our own keys are touched, everything else keeps its order
and its bytes; a rescue entry without our keys is made before anything else, and entries for recovery stay as they are.
A line that the kernel would cut off is refused before anything is written.

A layout has

- ``NAME``; ``found(root)``: whether the machine boots this way;
- ``paths(root)``: every file that it may write; ``owned(path)``: the mode of one that is ours alone, else None;
- ``look(contents, root)``: ``entries`` and ``rescue`` (``id``, ``image``, ``kernel``, ``arguments``), and what else an
  undo must bring back;
- ``wanted(arguments, contents, kernel)``: path -> new content, in the order of writing; pure, may raise StepFailed;
- ``unmerge(arguments, path, now, old)``: for a file that somebody changed since: ``now`` without what is ours;
- ``finish(arguments, old, root)``: what makes the files take effect, or the snapshot ``old`` again;
- ``clean(root)``: remove what a kill left behind;
- ``default_kernel(root)``: release of the kernel that starts by itself, or None.
"""

from __future__ import annotations

import json
from typing import Any

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps import config
from evenkeel.probe.steps.boot import debian, defaults, entryfiles, rhel, suse, systemd_boot
from evenkeel.probe.steps.boot.arguments import merge, missing, require_short
from evenkeel.probe.steps.files import read_value

PERSISTENT = True

#: In the order of asking: the first that says that the machine boots its way.
LAYOUTS: tuple[Any, ...] = (systemd_boot, debian, rhel, suse)
FOLDERS = ("/etc/", "/boot/", "/efi/")
_RELEASE = "/proc/sys/kernel/osrelease"


def snapshot(step: dict[str, Any], root: str) -> str:
    """JSON: ``layout``; ``files``: path -> snapshot of it; ``entries``, ``rescue`` and what else the layout wants kept.

    Raises StepFailed on a machine whose boot loader cannot be set, and for a command line that would be too long.
    """
    layout = _layout(root)
    state = _look(layout, root)
    for entry in state["entries"]:
        line = merge(step["arguments"], entry["arguments"])
        require_short(line, entry["image"], "the entry %s" % entry["id"])
    layout.wanted(step["arguments"], _contents(state), _kernel(root))  # what cannot be done is said before anything is
    return json.dumps(state, sort_keys=True)


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    """Every entry has all arguments and no other value for them, the rescue entry none; our files say nothing else."""
    found = json.loads(state or "{}")
    layout = _named(found["layout"])
    contents = _contents(found)
    wanted = layout.wanted(step["arguments"], contents, found["kernel"])
    if any(contents.get(path) != data for path, data in wanted.items()):
        return False
    plain = [{**argument, "value": None} for argument in step["arguments"] if not argument.get("after")]
    return (
        bool(found["entries"])
        and all(not missing(step["arguments"], line["arguments"]) for line in found["entries"])
        and bool(found["rescue"])
        and all(not missing(plain, line["arguments"]) for line in found["rescue"])
    )


def shown(step: dict[str, Any], state: str | None) -> str | None:
    found = json.loads(state or "{}")
    lines = {line["arguments"] for line in found.get("entries", [])}
    return " | ".join(sorted(lines)) or None


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    found = json.loads(state or "{}")
    layout = _named(found["layout"])
    contents = _contents(found)
    for path, data in layout.wanted(step["arguments"], contents, found["kernel"]).items():
        if contents.get(path) != data:
            _put(layout, path, data, found["files"].get(path), root)
    layout.finish(step["arguments"], None, root)


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    old = _upgraded(json.loads(state or "{}"))
    layout = _named(old["layout"])
    layout.clean(root)
    for path in {**old["files"], **dict.fromkeys(layout.paths(root))}:
        config.remove_temporary(path, root)
    now = _look(layout, root)
    if all(now.get(part) == old.get(part) for part in ("files", "generated")):
        return
    before, after = _contents(old), _contents(now)
    ours = layout.wanted(step["arguments"], before, old["kernel"])
    ids = {entryfiles.stem(path): data for path, data in before.items() if path.endswith(".conf")}
    # Newest first: the entries, then what future kernels get, then the rescue entry.
    for path in reversed([*ours, *(path for path in after if path not in ours)]):
        then, data = before.get(path), after.get(path)
        if now["files"].get(path) == old["files"].get(path):
            continue
        if path in old["files"] and (layout.owned(path) or data in (then, ours.get(path))):
            config.undo({"path": path}, old["files"][path], root, FOLDERS)
            continue
        if data is not None:  # somebody changed it since, or it is the entry of a kernel that was not there
            then = then or ids.get(entryfiles.stem(path))  # systemd-boot renames an entry whose tries it counts
            _put(layout, path, layout.unmerge(step["arguments"], path, data, then), now["files"][path], root)
    # Not when the menu is still the old one; also when every file is back already: a kill between the two.
    if now.get("generated") != old.get("generated"):
        layout.finish(None, old, root)


def menu(root: str = "/") -> dict[str, Any]:
    """Operation: what the next boot can bring.  ``layout``, ``default`` (release, or None) and ``entries``.

    Empty on a machine whose boot loader Evenkeel does not know: to look is never an error.
    """
    try:
        layout = _layout(root)
        return {
            "layout": layout.NAME,
            "default": layout.default_kernel(root),
            "entries": _look(layout, root)["entries"],
        }
    except (StepFailed, OSError):
        return {"layout": None, "default": None, "entries": []}


def _layout(root: str) -> Any:
    for layout in LAYOUTS:
        if layout.found(root):
            return layout
    raise StepFailed(
        "the machine has no update-grub that reads /etc/default/grub.d, no grub2-mkconfig with /etc/default/grub, and "
        "no entries of the Boot Loader Specification; kernel arguments cannot be set here",
        2,
    )


def _named(name: str) -> Any:
    for layout in LAYOUTS:
        if name == layout.NAME:
            return layout
    raise StepFailed("the probe knows no boot loader %r; is it older than the journal?" % name)


def _look(layout: Any, root: str) -> dict[str, Any]:
    files = {path: config.snapshot({"path": path}, root, FOLDERS) for path in layout.paths(root)}
    contents = {path: config.content(state) for path, state in files.items()}
    found: dict[str, Any] = {"layout": layout.NAME, "files": files, "kernel": _kernel(root)}
    found.update(layout.look(contents, root))
    return found


def _contents(state: dict[str, Any]) -> dict[str, bytes | None]:
    return {path: config.content(file) for path, file in state["files"].items()}


def _kernel(root: str) -> str:
    return (read_value(_RELEASE, root) or "").strip()


def _put(layout: Any, path: str, data: bytes | None, state: str | None, root: str) -> None:
    old = json.loads(state or "{}")
    if data is None:
        config.undo({"path": path}, json.dumps({"missing": []}), root, FOLDERS)
    else:
        config.replace(path, data, old.get("mode", layout.owned(path) or 0o644), old.get("owner"), root)


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A snapshot as journals of 0.1 have it: Debian's drop-in alone."""
    if "layout" in state:
        return state
    files = {debian.DROP_IN: state["file"], defaults.RESCUE_SCRIPT: json.dumps({"missing": []})}
    return {"layout": debian.NAME, "files": files, "kernel": "", "generated": state["sha256"]}
