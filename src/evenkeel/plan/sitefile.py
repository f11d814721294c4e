"""From the text of a site file to a :class:`Site`, with line and column for everything that is wrong.

Pure: text in, document out.  Reading files and folders is :mod:`evenkeel.cli.files`; whether a site fits its hosts is
the planner's question.

The text is parsed to YAML *nodes*, not to Python values, for three reasons: every key and value keeps its place; a
duplicate key is seen; and what a plain scalar means is decided by the field it stands in, not by YAML.  So
``cpus: 3`` is the CPU list 3, ``memory: 4096`` is refused because it has no unit, and the YAML 1.1 traps
(``010`` is 8, ``1:30`` is 90, ``no`` is false) cannot spring.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from evenkeel.documents.cpuset import CpuSet, format_cpus, parse_cpus
from evenkeel.documents.quantity import Bytes, Nanoseconds, format_size, parse_duration, parse_size
from evenkeel.documents.site import NAME, GuestWish, HostWish, Site
from evenkeel.errors import Where, WrongInput
from evenkeel.plan.cells import wrong_cells
from evenkeel.plan.levels import implied_goal, too_weak

#: More nodes than this, aliases unfolded, is an attack or an accident ("billion laughs"), not a site.
MAX_NODES = 100_000
MAX_DEPTH = 40
MAX_CHARACTERS = 1 << 20  # some thousand guests; the parser needs seconds for it
LINE_BREAK = "\r\n|[\r\n\x85\u2028\u2029]"
VERSION = 1
#: Names of architectures that people use, and the one that uname -m prints.
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64", "ppc64el": "ppc64le"}

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]  # of a value in the site: ("guests", "plc", "memory")


class WrongSite(WrongInput):
    """All that is wrong with a site: this error is the first one in the text, ``others`` are the rest."""

    def __init__(self, first: WrongInput, others: Sequence[WrongInput]) -> None:
        super().__init__(first.message, where=first.where, hint=first.hint)
        self.others = tuple(others)


def parse_site(text: str, file: str) -> Site:
    """The site that ``text`` describes; ``file`` is its name in messages.  Raises WrongInput and nothing else."""
    return parse_site_parts([(file, text)])


def parse_site_parts(parts: Sequence[tuple[str, str]]) -> Site:
    """One site from several files, each ``(name, text)``: their hosts and guests together, every name once.

    Raises WrongInput and nothing else.
    """
    reader = _Reader()
    hosts: dict[str, Any] = {}
    guests: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for file, text in parts:
        data = reader.file(file, text)
        for key, value in (data.get("placing") or {}).items():
            if key in limits:
                before, after = reader.places["placing", key], reader.places_of_file["placing", key]
                reader.complain(f'"{key}" of placing is said twice, first at {before.key}', after.key)
            else:
                limits[key] = value
        for kind, into in (("hosts", hosts), ("guests", guests)):
            for name, wish in (data.get(kind) or {}).items():
                if name in into:
                    before = reader.places[kind, name]
                    after = reader.places_of_file[kind, name]
                    reader.complain(f'{kind[:-1]} "{name}" is described twice, first at {before.key}', after.key)
                else:
                    into[name] = wish
        for path, place in reader.places_of_file.items():
            reader.places.setdefault(path, place)
    first = parts[0][0] if parts else "site"
    if not hosts and not reader.complaints:
        reader.complain(
            "the site has no hosts",
            reader.places[("hosts",)].key if ("hosts",) in reader.places else Where(first),
            hint="name one, as in\n\n  hosts:\n    cell:\n      address: ssh://root@cell.example.org\n",
        )
    reader.stop_if_wrong()
    for wish in guests.values():
        if "goal" not in wish and wish.get("latency") is not None:
            wish["goal"] = implied_goal(wish["latency"])
    try:
        site = Site.model_validate({"hosts": hosts, "guests": guests, "placing": limits})
    except ValidationError as error:
        for problem in error.errors():
            reader.complain(_sentence(problem), reader.nearest(tuple(problem["loc"])))
    else:
        _check(site, reader)
        reader.stop_if_wrong()
        return site
    reader.stop_if_wrong()
    raise AssertionError("unreachable: pydantic refused the site without a reason")


def parse_as(model: type[M], text: str, file: str) -> M:
    """Another YAML file, read by the rules of a site file: units, unknown keys, places.  Raises WrongInput.

    Every key at its top level has a default.
    """
    reader = _Reader(file_name=file, order=[file])
    root = reader._compose(text)
    if root is None or _is_null(root):
        return model()
    if not isinstance(root, MappingNode):
        raise WrongInput("a mapping of keys and values is needed here", where=reader.where(root))
    data = reader._model(model, root, ())
    reader.places.update(reader.places_of_file)
    reader.stop_if_wrong()
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for problem in error.errors():
            reader.complain(_sentence(problem), reader.nearest(tuple(problem["loc"])))
    reader.stop_if_wrong()
    raise AssertionError("unreachable: pydantic refused the file without a reason")


def find_place(parts: Sequence[tuple[str, str]], *path: str) -> Where | None:
    """Where a right site says something: ``find_place(parts, "guests", "plc", "memory")``.  None: it does not.

    For what is found wrong later, when the site meets the facts of its hosts.
    """
    for file, text in parts:
        reader = _Reader()
        reader.file(file, text)
        if path in reader.places_of_file:
            place = reader.places_of_file[path]
            return place.key if len(path) == 2 else place.value
    return None


@dataclass(frozen=True)
class _Place:
    """Where a value stands, and the key before it (the item itself in a list)."""

    key: Where
    value: Where


@dataclass
class _Reader:
    """Walks the nodes of a file along the models, and keeps the places and all complaints."""

    places: dict[Path, _Place] = field(default_factory=dict)  # all files; the first that names a thing
    places_of_file: dict[Path, _Place] = field(default_factory=dict)
    complaints: list[WrongInput] = field(default_factory=list)
    file_name: str = ""
    nodes: int = 0
    order: list[str] = field(default_factory=list)  # file names in the order given, to sort complaints

    def complain(self, message: str, where: Where, hint: str | None = None) -> None:
        self.complaints.append(WrongInput(message, where=where, hint=hint))

    def stop_if_wrong(self) -> None:
        if not self.complaints:
            return

        def position(error: WrongInput) -> tuple[int, int, int]:
            where = error.where or Where("")
            number = self.order.index(where.file) if where.file in self.order else -1
            return number, where.line or 0, where.column or 0

        found = sorted(self.complaints, key=position)
        raise WrongSite(found[0], found[1:]) if found[1:] else found[0]

    def where(self, node: Node) -> Where:
        return Where(self.file_name, node.start_mark.line + 1, node.start_mark.column + 1)

    def at(self, *path: str | int) -> Where:
        """The place of a value that is in the text."""
        return self.places[path].value

    def _position(self, text: str, index: int) -> Where:
        """Line and column of a character, counted as the YAML parser counts them."""
        ends = [match.end() for match in re.finditer(LINE_BREAK, text[:index])]
        return Where(self.file_name, len(ends) + 1, index - (ends[-1] if ends else 0) + 1)

    def nearest(self, path: Path) -> Where:
        """The place of the value at ``path``, or of what encloses it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path].value if path else Where(self.order[0])

    # -- one file ------------------------------------------------------------------------------------------------

    def file(self, file: str, text: str) -> dict[str, Any]:
        self.file_name, self.places_of_file = file, {}
        self.order.append(file)
        root = self._compose(text)
        if root is None or _is_null(root):
            raise WrongInput("the file is empty", where=Where(file), hint=_FIRST_LINES)
        if not isinstance(root, MappingNode):
            what = "a list" if isinstance(root, SequenceNode) else "a single value"
            raise WrongInput(f"a site is a mapping, this is {what}", where=self.where(root), hint=_FIRST_LINES)
        data: dict[str, Any] = self._model(Site, root, ())
        self._version(data.get("version"), root)
        return data

    def _compose(self, text: str) -> Node | None:
        # Not the round-trip loader: it fails on some valid texts, because of where their comments stand.
        yaml = YAML(typ="safe", pure=True)
        yaml.max_depth = MAX_DEPTH
        yaml.composer.warn_double_anchors = False  # YAML allows it: the nearest one before the alias counts
        tab = re.search(r"^ *\t[ \t]*(?=[^\s#])", text, re.MULTILINE)
        if len(text) > MAX_CHARACTERS:
            raise WrongInput("the file is too large for a site", where=Where(self.file_name))
        try:
            documents = []
            for document in yaml.compose_all(text):
                documents.append(document)
                if len(documents) == 2:
                    raise WrongInput(
                        "a second YAML document starts here; a site file holds one",
                        where=self.where(document) if document is not None else Where(self.file_name),
                        hint="put each part into a file of its own and name the folder",
                    )
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = Where(self.file_name, mark.line + 1, mark.column + 1) if mark else Where(self.file_name)
            culprit = self._position(text, text.index("\t", tab.start())) if tab else None
            if culprit and (culprit.line or 0) <= (where.line or 0):
                raise WrongInput(
                    "a tab is used to indent; YAML allows only spaces", where=culprit, hint="replace the tab by spaces"
                ) from None
            if isinstance(error, MaxDepthExceededError):
                raise WrongInput("nested more deeply than a site can be", where=where) from None
            problem = re.sub(r"\s+", " ", error.problem or error.context or "cannot be read").strip()
            raise WrongInput(f"not YAML: {problem}", where=where) from None
        except ReaderError as error:
            raise WrongInput(
                f"a character that YAML does not allow: U+{error.character:04X}",
                where=self._position(text, error.position),
                hint="remove it; a text file is needed here",
            ) from None
        except WrongInput:
            raise
        except Exception as error:  # noqa: BLE001
            # ruamel.yaml answers some broken texts with Python's own errors: "\UFFFFFFFF" is an OverflowError.
            what = f"{type(error).__name__} {error}".strip()
            raise WrongInput(f"not YAML: its parser gives up with {what}", where=Where(self.file_name)) from None
        return documents[0] if documents else None

    def _version(self, version: int | None, root: Node) -> None:
        if version is None and ("version",) not in self.places_of_file:
            self.complain(
                "the file does not say which version of the site format it is written in",
                self.where(root),
                hint=f"add a line: version: {VERSION}",
            )
        elif version is not None and version != VERSION:
            # Alone: what else seems wrong may be right in that version.
            raise WrongInput(
                f"version {version} of the site format is unknown to this evenkeel, which reads version {VERSION}",
                where=self.places_of_file[("version",)].value,
                hint="a newer evenkeel may be needed" if version > VERSION else f"write version: {VERSION}",
            )

    def _count(self, node: Node, depth: int) -> None:
        """Aliases make a small text large, or endless when a value contains itself; stop in time."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise WrongInput("aliases unfold this to far more than a site can hold", where=self.where(node))
        if isinstance(node, ScalarNode):
            node.value = self._whole(node)

    def _whole(self, node: ScalarNode) -> str:
        """The text of a scalar.  A character beyond U+FFFF may be written as in JSON, in two halves; ruamel.yaml leaves
        the halves apart, and one alone is no character."""
        text = str(node.value)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise WrongInput(
                "half a character, as in \\ud83d without \\ude00 after it",
                where=self.where(node),
                hint="write the character itself",
            ) from None

    # -- nodes to values, led by the type of the field ------------------------------------------------------------

    def _value(self, hint: Any, node: Node, path: Path) -> Any:
        """The value of ``node`` as the field type ``hint`` wants it; None with a complaint where it cannot be."""
        self._count(node, len(path))
        hint, optional = _strip_none(hint)
        if optional and _is_null(node):
            return None
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            return self._model(hint, node, path) if self._is(MappingNode, "a mapping", node, path) else None
        if origin in (dict, tuple) and _is_null(node):  # `guests:` with everything below it commented out
            return origin()
        if origin is dict:
            if not self._is(MappingNode, "a mapping", node, path):
                return None
            return self._mapping(arguments[0], arguments[1], node, path)
        if origin is tuple:
            return self._list(arguments[0], node, path)
        return self._scalar(hint, node, path) if self._is(ScalarNode, "one value", node, path) else None

    def _place(self, node: Node, path: Path) -> Where:
        """Of a value; of its key where the value is empty, since the place of nothing is the line after it."""
        return self.places_of_file[path].key if _is_null(node) and path in self.places_of_file else self.where(node)

    def _is(self, kind: type[Node], wanted: str, node: Node, path: Path) -> bool:
        if isinstance(node, kind):
            return True
        name = path[-1] if path else "the site"
        if isinstance(node, ScalarNode):
            found = "nothing" if _is_null(node) else f"the value {_show(node)}"
        else:
            found = "a mapping" if isinstance(node, MappingNode) else "a list"
        cure = "write the kernel's list format, as in 2-3,6" if wanted == "one value" and "cpus" in str(name) else None
        self.complain(f'"{name}" needs {wanted}, not {found}', self._place(node, path), hint=cure)
        return False

    def _pairs(self, node: MappingNode, path: Path, depth: int = 0) -> dict[str, tuple[Node, Node]]:
        """Key -> (key node, value node), with merge keys (``<<``) unfolded and duplicates complained about."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            self._count(key, depth)
            if not isinstance(key, ScalarNode):
                self.complain("a key must be a plain word", self.where(key))
            elif key.value == "<<" and key.style is None:
                for base in value.value if isinstance(value, SequenceNode) else [value]:
                    self._count(base, depth)
                    if not isinstance(base, MappingNode):
                        self.complain(
                            '"<<" must be followed by an alias of a mapping, as in <<: *base', self.where(key)
                        )
                        continue
                    for name, pair in self._pairs(base, path, depth + 1).items():
                        merged.setdefault(name, pair)
            elif key.value in own:
                first = self.where(own[key.value][0])
                self.complain(
                    f'key "{key.value}" stands twice in the same mapping, first in line {first.line}', self.where(key)
                )
            else:
                own[key.value] = (key, value)
        return merged | own

    def _model(self, model: type[BaseModel], node: Node, path: Path) -> dict[str, Any]:
        assert isinstance(node, MappingNode)
        hints = typing.get_type_hints(model, include_extras=True)
        known = [name for name in model.model_fields if not (model is Site and name == "kind")]
        pairs = self._pairs(node, path)
        data: dict[str, Any] = {}
        complaints = len(self.complaints)
        for key, (key_node, value_node) in pairs.items():
            if key not in known:
                near = _near(key, known)
                self.complain(
                    f'unknown key "{key}"' + (f'; did you mean "{near}"?' if near else ""),
                    self.where(key_node),
                    hint=None if near else f"known keys here: {', '.join(known)}",
                )
                continue
            inner = (*path, key)
            self.places_of_file[inner] = _Place(self.where(key_node), self.where(value_node))
            data[key] = self._value(hints[key], value_node, inner)
        missing = [name for name in known if model.model_fields[name].is_required() and name not in pairs]
        # A misspelt key is most often the missing one; telling both would be telling it twice.
        if missing and model is not Site and len(self.complaints) == complaints:
            where = self.places_of_file[path].key if path in self.places_of_file else self.where(node)
            what = " and ".join(f'"{name}"' for name in missing)
            self.complain(f'"{path[-1]}" needs {what}', where, hint=_EXAMPLES.get(missing[0]))
        return data

    def _mapping(self, names: Any, hint: Any, node: Node, path: Path) -> dict[str, Any]:
        """``names``: the type of the keys, ``str`` or a Literal of those that there are."""
        assert isinstance(node, MappingNode)
        data: dict[str, Any] = {}
        for key, (key_node, value_node) in self._pairs(node, path).items():
            inner = (*path, key)
            self.places_of_file[inner] = _Place(self.where(key_node), self.where(value_node))
            if path in (("hosts",), ("guests",)) and not re.fullmatch(NAME, key):
                self.complain(
                    f"{key!r} cannot be the name of a {path[0][:-1]}",
                    self.where(key_node),
                    hint="letters, digits, '_', '.' and '-', at most 63, the first a letter or digit",
                )
            if typing.get_origin(names) is typing.Literal and key not in typing.get_args(names):
                known = typing.get_args(names)
                near = _near(key, known)
                self.complain(
                    f'there is no {str(path[-1]).removesuffix("s")} "{key}"'
                    + (f'; did you mean "{near}"?' if near else ""),
                    self.where(key_node),
                    hint=f"one of {', '.join(known)}",
                )
                continue
            data[key] = self._value(hint, value_node, inner)
        return data

    def _list(self, hint: Any, node: Node, path: Path) -> list[Any]:
        if not self._is(SequenceNode, "a list", node, path):
            return []
        data = []
        for index, item in enumerate(node.value):
            inner = (*path, index)
            self.places_of_file[inner] = _Place(self.where(item), self.where(item))
            data.append(self._value(hint, item, inner))
        return data

    def _scalar(self, hint: Any, node: Node, path: Path) -> Any:
        name, text = path[-1], str(node.value)
        if node.tag is not None and not str(node.tag).startswith("tag:yaml.org,2002:"):
            self.complain(f"the YAML tag {node.tag} has no meaning in a site", self.where(node))
            return None
        if _is_null(node):
            self.complain(f'"{name}" has no value', self._place(node, path), hint=_EXAMPLES.get(str(name)))
            return None
        try:
            if hint == CpuSet:
                return parse_cpus(text)
            if hint == Bytes:
                return parse_size(text)
            if hint == Nanoseconds:
                return parse_duration(text)
            if typing.get_origin(hint) is typing.Annotated:  # its bounds are the model's to judge
                hint = typing.get_args(hint)[0]
            if hint is bool:
                return _parse_bool(text)
            if hint is int:
                return _parse_int(text)
            if hint is float:
                return _parse_float(text)
        except ValueError as error:
            cure = (
                "CPU numbers and ranges, as in 2-3,6; `evenkeel facts` shows which a host has"
                if hint == CpuSet
                else None
            )
            self.complain(f'"{name}": {error}', self.where(node), hint=cure)
            return None
        if typing.get_origin(hint) is typing.Literal:
            choices = typing.get_args(hint)
            if all(isinstance(choice, int) for choice in choices):  # version: judged by _version()
                return self._scalar(int, node, path)
            if text not in choices:
                near = _near(text, choices)
                known = ", ".join(map(str, choices))
                self.complain(
                    f'"{name}" cannot be {_show(node)}' + (f'; did you mean "{near}"?' if near else ""),
                    self.where(node),
                    hint=f"one of {known}",
                )
                return None
            return text
        if hint is str:
            return text
        if typing.get_origin(hint) is typing.Union:  # a number, or a word instead of it
            words = [w for part in typing.get_args(hint) for w in typing.get_args(part) if isinstance(w, str)]
            if text in words:
                return text
            try:
                return _parse_int(text)
            except ValueError as error:
                self.complain(f'"{name}": {error}', self.where(node), hint=f"a number, or {' or '.join(words)}")
                return None
        raise TypeError(f"sitefile has no reader for {hint!r} of {path}")  # a new field of Site: a test walks them all


_FIRST_LINES = "start with the lines `version: 1` and `hosts:`; examples/plc/site.yaml is a whole one"
_EXAMPLES = {
    "address": "as in  address: ssh://root@cell.example.org",
    "vcpus": "as in  vcpus: 2",
    "memory": "as in  memory: 4GiB",
    "latency": "as in  latency: 100us",
    "because": "say why this host differs from the rule; the reason is kept in the plan",
}


def _strip_none(hint: Any) -> tuple[Any, bool]:
    """``X | None`` -> (X, True); X -> (X, False)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        return functools.reduce(operator.or_, rest), len(rest) < len(typing.get_args(hint))
    return hint, False


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in ("", "~", "null", "Null", "NULL")


def _show(node: Node) -> str:
    text = str(node.value)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _near(word: str, known: Sequence[str]) -> str | None:
    lowered = {name.lower().replace("-", "_"): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def _parse_bool(text: str) -> bool:
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _parse_int(text: str) -> int:
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?0\d{1,17}", text, re.ASCII):
        raise ValueError(f"{text!r} is octal to some readers of YAML and decimal to others; leave out the first 0")
    raise ValueError(f"{text!r} is not a whole number")


def _parse_float(text: str) -> float:
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.\d{1,18})?", text, re.ASCII):
        return float(text)
    raise ValueError(f"{text!r} is not a number")


def _sentence(problem: Mapping[str, Any]) -> str:
    name = next((part for part in reversed(problem["loc"]) if isinstance(part, str)), "the site")
    limits = problem.get("ctx", {})
    for bound, word in (("ge", "at least"), ("le", "at most")):
        if bound in limits:
            return f'"{name}" must be {word} {limits[bound]}, not {problem["input"]}'
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f'"{name}": {message[:1].lower()}{message[1:]}'


# -- what must agree inside one site ----------------------------------------------------------------------------------


def _check(site: Site, reader: _Reader) -> None:
    _check_hosts(site, reader)
    for name, guest in site.guests.items():
        _check_host_of(name, guest, site, reader)
        _check_goal(name, guest, reader)
        _check_sizes(name, guest, reader)
        _check_cells(name, guest, reader)
        _check_wires(name, guest, reader)
    _check_claims(site, reader)


def _check_hosts(site: Site, reader: _Reader) -> None:
    seen: dict[str, str] = {}
    for name, host in site.hosts.items():
        place = reader.at("hosts", name, "address")
        scheme, separator, rest = host.address.partition(":")
        if host.address in seen:
            other = seen[host.address]
            first = reader.at("hosts", other, "address")
            reader.complain(f'hosts "{other}" and "{name}" have the same address; the first is at {first}', place)
        seen.setdefault(host.address, name)
        is_path = "/" in host.address and not separator  # a recorded tree
        known = host.address == "local" or is_path or (rest and scheme == "virtual")
        if not known and not re.fullmatch(
            r"ssh://(?:[^\s@/:-][^\s@/:]*@)?(?:[^\s@/:\[\]-][^\s@/:\[\]]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?",
            host.address,
        ):
            near = _near(scheme, ["local", "virtual", "ssh"]) if separator and "@" not in scheme else None
            guess = f"ssh://{host.address}" if "@" in host.address and not separator else None
            if near:
                guess = {"local": "local", "virtual": f"virtual:{rest or 'NAME'}"}.get(
                    near, f"ssh://{rest.lstrip('/')}"
                )
            reader.complain(
                f"{host.address!r} is not the address of a machine" + (f"; did you mean {guess!r}?" if guess else ""),
                place,
                hint="local, ssh://root@HOST[:PORT] or virtual:NAME",
            )
        _check_data_plane(name, host, reader)
        for rule, override in host.overrides.items():
            if override.off == (override.value is not None):
                both = "has both a value and off: true" if override.off else "has neither a value nor off: true"
                reader.complain(f'the override of "{rule}" {both}', reader.places["hosts", name, "overrides", rule].key)


def _check_data_plane(name: str, host: HostWish, reader: _Reader) -> None:
    if (wish := host.data_plane) is None:
        return
    place = reader.at("hosts", name, "data_plane")
    if (wish.cpus is not None) == bool(wish.near):
        reader.complain(
            f'the data plane of host "{name}" needs either near or cpus'
            + (", and has both" if wish.near else ", and has neither"),
            place,
            hint="near: [enp1s0] for a core beside that card, or cpus: 2,10 to name them",
        )
    elif wish.cpus is not None and not wish.cpus:
        reader.complain(f'the data plane of host "{name}" has an empty list of CPUs', place, hint="leave it out")
    for card in {card for card in wish.near if wish.near.count(card) > 1}:
        reader.complain(
            f'the data plane of host "{name}" names {card} twice', place, hint="cores: 2 for two cores each"
        )
    if both := (wish.cpus or frozenset()) & (host.housekeeping or frozenset()):
        there = reader.at("hosts", name, "housekeeping")
        reader.complain(f'CPU {format_cpus(both)} is kept for the host by "housekeeping" at {there}', place)


def _check_host_of(name: str, guest: GuestWish, site: Site, reader: _Reader) -> None:
    known = ", ".join(site.hosts)
    if guest.host is None and guest.cpus is not None and len(site.hosts) > 1:
        reader.complain(
            f'guest "{name}" names CPUs, but no host',
            reader.at("guests", name, "cpus"),
            hint=f"add `host:` with one of {known}, or leave `cpus` out to have both chosen",
        )
    if guest.host is not None and guest.host not in site.hosts:
        near = _near(guest.host, list(site.hosts))
        reader.complain(
            f'guest "{name}" is to run on "{guest.host}", which is not a host of this site'
            + (f'; did you mean "{near}"?' if near else ""),
            reader.at("guests", name, "host"),
            hint=f"hosts of this site: {known}",
        )
    if guest.architecture in _ARCHITECTURES:
        reader.complain(
            f"{guest.architecture!r} is not the kernel's name of an architecture; "
            f"did you mean {_ARCHITECTURES[guest.architecture]!r}?",
            reader.at("guests", name, "architecture"),
        )


def _check_goal(name: str, guest: GuestWish, reader: _Reader) -> None:
    if weak := too_weak(guest):
        message, hint = weak
        reader.complain(f'guest "{name}": {message}', reader.at("guests", name, "latency"), hint=hint)
    if guest.latency == 0:
        reader.complain("a deadline of zero cannot be met", reader.at("guests", name, "latency"))
    if guest.realtime_vcpus is not None:
        beyond = guest.realtime_vcpus - frozenset(range(guest.vcpus))
        if guest.goal != "realtime":
            reader.complain(
                f'guest "{name}" names real-time vCPUs, but its goal is {guest.goal}',
                reader.at("guests", name, "realtime_vcpus"),
                hint="set `goal: realtime`, or leave `realtime_vcpus` out",
            )
        elif beyond:
            reader.complain(
                f"vCPU {format_cpus(beyond)} does not exist: the guest has {guest.vcpus} of them, "
                f"0{f'-{guest.vcpus - 1}' if guest.vcpus > 1 else ''}",
                reader.at("guests", name, "realtime_vcpus"),
            )
        elif not guest.realtime_vcpus:
            reader.complain(
                "a real-time guest needs at least one real-time vCPU",
                reader.at("guests", name, "realtime_vcpus"),
                hint="leave the line out for all vCPUs but 0",
            )


def _check_sizes(name: str, guest: GuestWish, reader: _Reader) -> None:
    if guest.memory == 0:
        reader.complain("a guest needs memory", reader.at("guests", name, "memory"))
    if guest.page_size is not None:
        if guest.page_size < 4096 or guest.page_size & (guest.page_size - 1):
            reader.complain(
                f"no kernel has pages of {format_size(guest.page_size)}",
                reader.at("guests", name, "page_size"),
                hint="2MiB and 1GiB on x86_64",
            )
        elif guest.memory % guest.page_size:
            reader.complain(
                f"{format_size(guest.memory)} of memory is not a whole number of {format_size(guest.page_size)} pages",
                reader.at("guests", name, "memory"),
                hint=f"{format_size((guest.memory // guest.page_size + 1) * guest.page_size)} is",
            )
    if guest.cpus is not None and guest.goal in ("performance", "realtime") and len(guest.cpus) < guest.vcpus:
        reader.complain(
            f'guest "{name}" has {guest.vcpus} vCPUs and the goal {guest.goal}, which takes one CPU each, '
            f"but {len(guest.cpus)} CPUs are named",
            reader.at("guests", name, "cpus"),
        )


def _check_cells(name: str, guest: GuestWish, reader: _Reader) -> None:
    if wrong := wrong_cells(guest):
        key, message, hint = wrong
        reader.complain(f'guest "{name}": {message}', reader.at("guests", name, key), hint=hint)


def _check_wires(name: str, guest: GuestWish, reader: _Reader) -> None:
    for index, network in enumerate(guest.networks):
        chosen = [key for key in ("bridge", "network") if getattr(network, key)] + ["user"] * network.user
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none of them"
            reader.complain(
                f"a network is exactly one of bridge, network and user; this is {found}",
                reader.at("guests", name, "networks", index),
            )


def _check_claims(site: Site, reader: _Reader) -> None:
    """CPUs that the owner gave away by hand: once each, and never those that stay with the host."""
    only = next(iter(site.hosts)) if len(site.hosts) == 1 else None
    claimed: dict[tuple[str, int], str] = {}
    for name, guest in site.guests.items():
        host = guest.host or only
        if guest.cpus is None or host not in site.hosts:
            continue
        place = reader.at("guests", name, "cpus")
        if not guest.cpus:
            reader.complain(
                f'guest "{name}" has an empty list of CPUs', place, hint="leave `cpus` out to have it computed"
            )
        kept = guest.cpus & (site.hosts[host].housekeeping or frozenset())
        if kept:
            there = reader.at("hosts", host, "housekeeping")
            reader.complain(f'CPU {format_cpus(kept)} is kept for the host by "housekeeping" at {there}', place)
        polling = site.hosts[host].data_plane
        if polls := guest.cpus & (polling.cpus if polling and polling.cpus else frozenset()):
            there = reader.at("hosts", host, "data_plane")
            reader.complain(f'CPU {format_cpus(polls)} polls for packets by "data_plane" at {there}', place)
        others: dict[str, set[int]] = {}
        for cpu in guest.cpus:
            if (other := claimed.setdefault((host, cpu), name)) != name:
                others.setdefault(other, set()).add(cpu)
        for other, cpus in others.items():
            there = reader.at("guests", other, "cpus")
            reader.complain(
                f'guests "{other}" and "{name}" both claim CPU {format_cpus(cpus)} of host "{host}"; '
                f'"{other}" does at {there}',
                place,
                hint="give each its own, or leave `cpus` out and let the planner place them",
            )
