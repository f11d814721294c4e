"""From the text of a YAML file to a model, with line and column for everything that is wrong.

For small files that follow one model (steps, graphs of them).  A site has a reader of its own, because there the field
decides what a scalar means (:mod:`evenkeel.plan.sitefile`).  Pure: text in, model out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from evenkeel.errors import Where, WrongInput

M = TypeVar("M", bound=BaseModel)
#: More nodes than this, aliases unfolded, is an attack or an accident.
MAX_NODES = 20_000
MAX_DEPTH = 30
MAX_CHARACTERS = 1 << 20
_TAG = "tag:yaml.org,2002:"

Path = tuple[str | int, ...]


@dataclass
class Places:
    """Where each value of a file stands: ``("steps", "build", "needs", 0)``.  For what is found wrong later."""

    file: str
    keys: dict[Path, Where] = field(default_factory=dict)

    def nearest(self, path: Sequence[str | int]) -> Where:
        """The place of the value, or of the nearest thing around it that the file really has."""
        # Names of alternatives (a union's branches) are in a path of pydantic, and in no file: they are left out.
        known: Path = ()
        for part in path:
            if (*known, part) in self.keys:
                known = (*known, part)
        return self.keys.get(known, Where(self.file))


class WrongFile(WrongInput):
    """All that is wrong with a file: this error is the first one in the text, ``others`` are the rest."""

    def __init__(self, found: Sequence[WrongInput]) -> None:
        ordered = sorted(found, key=lambda one: (one.where.line or 0, one.where.column or 0) if one.where else (0, 0))
        super().__init__(ordered[0].message, where=ordered[0].where, hint=ordered[0].hint)
        self.others = tuple(ordered[1:])


def read_yaml(text: str, file: str) -> tuple[Any, Places]:
    """Plain data and the place of each value.  YAML 1.2: ``no`` is a word, ``010`` is ten.  Raises WrongInput."""
    places = Places(file)
    root = _compose(text, file)
    if root is None:
        raise WrongInput("the file is empty", where=Where(file))
    return _Builder(places).value(root, ()), places


def read_model(model: type[M], text: str, file: str) -> tuple[M, Places]:
    """The model that ``text`` describes.  Raises WrongInput (several at once: :class:`WrongFile`)."""
    data, places = read_yaml(text, file)
    if not isinstance(data, dict):
        raise WrongInput(f"a mapping is needed here, this is {_kind(data)}", where=places.nearest(()))
    try:
        return model.model_validate(data, context={"written_by_hand": True}), places
    except ValidationError as error:
        raise explained(error, model, places) from None


def explained(error: ValidationError, model: type[BaseModel], places: Places) -> WrongInput:
    """What pydantic found, in sentences with places."""
    found: dict[tuple[Where, str], WrongInput] = {}
    problems = error.errors()
    for problem in problems:
        loc = tuple(problem["loc"])
        # Pydantic counts only the good items of a list, so one that is wrong makes the list too short as well.
        inside = any(other["loc"][: len(loc)] == loc != other["loc"] for other in problems)
        if problem["type"] == "too_short" and inside:
            continue
        place = places.nearest(loc)
        message, hint = _sentence(dict(problem), model)
        found.setdefault((place, message), WrongInput(message, where=place, hint=hint))
    complaints = list(found.values())
    return complaints[0] if len(complaints) == 1 else WrongFile(complaints)


def _sentence(problem: dict[str, Any], model: type[BaseModel]) -> tuple[str, str | None]:
    loc, kind = problem["loc"], problem["type"]
    name = next((str(part) for part in reversed(loc) if isinstance(part, str)), "the file")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        here = _keys_at(model, loc[:-1])
        if close := difflib.get_close_matches(name, here, n=1):
            return f'unknown key "{name}"; did you mean "{close[0]}"?', None
        hint = f"here belong {', '.join(here)}" if here else None
        known = _keys(model)
        if name in known:
            return f'"{name}" does not belong here', hint
        close = difflib.get_close_matches(name, sorted(known), n=1)
        return f'unknown key "{name}"' + (f'; did you mean "{close[0]}"?' if close else ""), hint
    if kind == "missing":
        return f'"{name}" is missing', None
    if kind == "string_type" and isinstance(problem["input"], (int, float)):
        return f'"{name}" must be text, not {problem["input"]!r}', "put it into quotes"
    return f'"{name}": {message[:1].lower()}{message[1:]}', None


def _keys_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that belong at a place: of the model there, of all of them where it may be one of several."""
    models = [model]
    for part in loc:
        fields = [field for one in models for name, field in one.model_fields.items() if (field.alias or name) == part]
        if fields:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
        # Else a key of a mapping, an index, or a member of a union: the models are those already found.
    return sorted({field.alias or name for one in models for name, field in one.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _keys(model: type[BaseModel]) -> set[str]:
    """All keys of a model and of the models inside it."""
    models = [model]
    for one in models:  # which grows meanwhile
        inner = [found for field in one.model_fields.values() for found in _models_in(field.annotation)]
        models += [found for found in dict.fromkeys(inner) if found not in models]
    return {name for one in models for name in one.model_fields}


def _kind(data: Any) -> str:
    return "a list" if isinstance(data, list) else "nothing" if data is None else f"the value {data!r}"


def _compose(text: str, file: str) -> Node | None:
    if len(text) > MAX_CHARACTERS:
        raise WrongInput("the file is too large", where=Where(file))
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    try:
        documents = list(yaml.compose_all(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Where(file, mark.line + 1, mark.column + 1) if mark else Where(file)
        problem = re.sub(r"\s+", " ", error.problem or error.context or "cannot be read").strip()
        hint = "YAML allows only spaces to indent" if "\\t" in problem or "tab" in problem else None
        raise WrongInput(f"not YAML: {problem}", where=where, hint=hint) from None
    except ReaderError as error:
        raise WrongInput(f"a character that YAML does not allow: U+{error.character:04X}", where=Where(file)) from None
    except Exception as error:  # noqa: BLE001  ruamel.yaml answers some broken texts with Python's own errors
        raise WrongInput(f"not YAML: {type(error).__name__} {error}".strip(), where=Where(file)) from None
    if len(documents) > 1:
        mark = documents[1].start_mark
        raise WrongInput("a second YAML document starts here", where=Where(file, mark.line + 1, mark.column + 1))
    return documents[0] if documents else None


@dataclass
class _Builder:
    places: Places
    nodes: int = 0

    def where(self, node: Node) -> Where:
        return Where(self.places.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def value(self, node: Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise WrongInput("aliases unfold this to far more than such a file can hold", where=self.where(node))
        self.places.keys.setdefault(path, self.where(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise WrongInput("a key must be a word", where=self.where(key))
            name = str(key.value)
            if name == "<<" and key.tag == _TAG + "merge":
                raise WrongInput("merge keys (<<) are not read here", where=self.where(key), hint="write it out")
            if name in made:
                raise WrongInput(f'"{name}" is said twice', where=self.where(key))
            # The place of a value that is a block is its key: the block begins a line below.
            block = not isinstance(value, ScalarNode) and not value.flow_style
            self.places.keys[(*path, name)] = self.where(key if block or value.value == "" else value)
            made[name] = self.value(value, (*path, name))
        return made

    def _scalar(self, node: ScalarNode) -> Any:
        text = str(node.value)
        match str(node.tag).removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                digits = text.replace("_", "")
                try:
                    return int(digits, 0) if re.match(r"[-+]?0[xob]", digits) else int(digits)
                except ValueError:  # of more than 4300 digits
                    raise WrongInput("this number is too large", where=self.where(node)) from None
            case "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text.replace("_", ""), flags=re.IGNORECASE))
            case "str" | "timestamp":
                return text
            case other:
                raise WrongInput(f"values of the kind {other} are not read here", where=self.where(node))


def placed(places: Places, path: Sequence[str | int], message: str, hint: str | None = None) -> WrongInput:
    """An error about a value, with its place."""
    return WrongInput(message, where=places.nearest(path), hint=hint)
