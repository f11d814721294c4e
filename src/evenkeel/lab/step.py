"""What a step is, and the graph of steps that one submission makes.

A *definition* (one YAML file) says how a step is done: command, inputs, outputs, limits, what it needs of an agent or a
machine.  A *graph* (one YAML file too) uses definitions, sets their parameters, feeds outputs of one step into others,
and says with ``when`` which result leads where.  :func:`resolve` makes the whole graph out of it, with nothing left to
look up: that is what the lab stores, and what a runner on an agent or on a laptop is given.
Reads files of definitions; runs nothing (:mod:`evenkeel.lab.runner`) and knows no database.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from evenkeel.documents.base import Model, digest
from evenkeel.documents.quantity import Bytes, Nanoseconds
from evenkeel.documents.result import Cause
from evenkeel.documents.yamltext import Places, WrongFile, explained, placed, read_model, read_yaml
from evenkeel.errors import Where, WrongInput

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
#: ``{arch}`` in predicates, inputs, names of artifacts: the value of a parameter.  Commands get ``$SET_ARCH`` instead,
#: so that no setting can change what a shell reads.
_HOLE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
T = TypeVar("T", "Input", "ArtifactWish")
SOURCES = ("file", "git", "artifact", "output", "baseline", "content", "json_text")
SHIPPED = Path(__file__).parent / "shipped"
SUFFIX = ".yaml"
MAX_SCRIPT = 1 << 20


class Parameter(Model):
    """Something that is set for each use of a step.  The command finds it as ``$SET_NAME``, in capitals."""

    help: str = ""
    default: str | None = Field(default=None, description="without one it must be set")
    choices: tuple[str, ...] = ()


class Input(Model):
    """What the command finds as ``$IN/NAME``.  One of ``file``, ``git``, ``artifact``, ``output``, ``baseline``."""

    file: str | None = Field(default=None, description="a file or folder beside whoever submits or runs it")
    git: str | None = Field(default=None, description="a repository: folder or URL", examples=["/srv/git/linux.git"])
    ref: str = Field(default="HEAD", description="of the repository: branch, tag or commit")
    artifact: str | None = Field(default=None, description="STEP/NAME: of a step before", examples=["build/module"])
    output: str | None = Field(default=None, description="the output of a step before, as a JSON file")
    baseline: str | None = Field(
        default=None,
        description="STEP/NAME: the artifact of the last such step that passed before, with the same `same`; there is "
        "none the first time",
        examples=["build/log"],
    )
    content: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256; put in by the lab")
    media: str = Field(default="", description="of the content; put in by the lab")
    json_text: str | None = Field(default=None, description="put in by the lab")
    optional: bool = Field(default=False, description="whether it may be left out; there is no such file then")
    help: str = ""

    def source(self) -> tuple[str, str] | None:
        """Where it comes from, and the text of that; None where it is left to whoever uses the step."""
        for kind in SOURCES:
            if (text := getattr(self, kind)) is not None:
                return kind, text
        return None

    def step(self) -> str | None:
        """The step that it comes from."""
        if (whole := self.artifact or self.baseline) is not None:
            return whole.partition("/")[0]
        return self.output


class ArtifactWish(Model):
    """A file that the command leaves in ``$OUT``.  A folder becomes a tar file."""

    path: str = Field(description="below $OUT", examples=["module.ko"])
    media: str = "application/octet-stream"
    optional: bool = Field(default=False, description="whether the step passes without it")
    varies: bool = Field(
        default=False, description="whether its bytes differ from run to run, as those of a log of a parallel build"
    )
    keep: Nanoseconds | None = Field(default=None, description="for how long; the lab's policy when left out")


class Limits(Model):
    """What the step may use.  What is left out is not limited, but for the time: that is learned."""

    time: Nanoseconds | None = Field(
        default=None, gt=0, description="learned from earlier runs when left out", examples=["30min"]
    )
    cpus: float | None = Field(default=None, gt=0, le=4096, description="CPUs' worth of time", examples=[2])
    memory: Bytes | None = Field(default=None, gt=0, examples=["4GiB"])
    disk: Bytes | None = Field(default=None, gt=0, description="of its folder", examples=["10GiB"])


class Retry(Model):
    """Whether it is tried again.  A step that was lost with its agent always is, and does not count."""

    times: int = Field(default=0, ge=0, le=10)
    causes: tuple[Cause, ...] = Field(default=("machine", "input"), description="for which causes")


class Step(Model):
    """How a step is done."""

    version: Literal[1] = 1
    kind: Name = Field(description="its name in histories and statistics", examples=["kernel-module"])
    help: str = Field(default="", description="the first line is shown in lists")
    parameters: dict[Word, Parameter] = {}
    inputs: dict[Name, Input] = {}
    command: str | tuple[str, ...] = Field(
        description="text: a script for bash, with -e, -u and pipefail; a list: a program and its arguments"
    )
    scripts: tuple[str, ...] | dict[str, str] = Field(
        default=(), description="files beside the definition, found by the command in $LIB; they travel with it"
    )
    environment: dict[str, str] = Field(default={}, description="set besides; nothing else is inherited but PATH")
    tools: tuple[str, ...] = Field(default=(), description="programs that must be there", examples=[["make", "gcc"]])
    agent: str = Field(default="", description="predicate: which agents may run it", examples=["arch:x86_64"])
    machine: str = Field(
        default="", description="predicate: a machine of the pool that it gets for itself", examples=["mem>=16GiB"]
    )
    isolation: Literal["process", "bubblewrap"] = Field(
        default="process", description="bubblewrap: sees only the system, read-only, and its own folder; no network"
    )
    limits: Limits = Limits()
    expected: str = Field(default="", description="its durations are alike where this is alike", examples=["{arch}"])
    same: tuple[Word, ...] = Field(
        default=(), description="parameters that must be equal for results to be compared", examples=[["branch"]]
    )
    artifacts: dict[Name, ArtifactWish] = {}
    warnings: str | None = Field(default=None, description="the artifact that is a compiler's log")
    retry: Retry = Retry()

    def settings(self, given: Mapping[str, str]) -> dict[str, str]:
        """All parameters with their values.  Raises WrongInput for an unknown or missing one."""
        for name in given:
            if name not in self.parameters:
                close = difflib.get_close_matches(name, self.parameters, n=1)
                known = ", ".join(self.parameters) or "none"
                raise WrongInput(
                    f'step {self.kind} has no parameter "{name}"' + (f'; did you mean "{close[0]}"?' if close else ""),
                    hint=f"its parameters: {known}",
                )
        made: dict[str, str] = {}
        for name, parameter in self.parameters.items():
            value = given.get(name, parameter.default)
            if value is None:
                raise WrongInput(
                    f'step {self.kind} needs the parameter "{name}"'
                    + (f": {parameter.help}" if parameter.help else ""),
                    hint=f"--set {name}=...",
                )
            if _HOLE.search(value):
                raise WrongInput(f'"{name}" of step {self.kind} cannot hold {value!r}', hint="{word} is a parameter")
            if parameter.choices and value not in parameter.choices:
                raise WrongInput(
                    f'"{name}" of step {self.kind} cannot be {value!r}', hint=f"one of {', '.join(parameter.choices)}"
                )
            made[name] = value
        return made


class Need(Model):
    """An edge: this step comes after that one.

    ``when``: a predicate on the output of that step, and on ``state`` (passed, failed).  Without ``state`` in it that
    step must have passed.  When it does not hold, the step is skipped.
    """

    step: Name
    when: str = Field(default="", examples=["conflict:false"])


class Use(Model):
    """A step in a graph: what is done (``uses`` or ``step``), with which settings, after which others."""

    uses: str | None = Field(
        default=None, description="a shipped step, or the file of a definition", examples=["kernel-module", "./my.yaml"]
    )
    step: Step | None = Field(default=None, description="the definition itself, instead of uses")
    set: dict[Word, str] = {}
    needs: tuple[Name | Need, ...] = ()
    join: Literal["all", "any"] = Field(default="all", description="any: one edge that holds is enough")
    inputs: dict[Name, Input] = Field(default={}, description="instead of those that the definition names")

    def edges(self) -> tuple[Need, ...]:
        """Every step that this one comes after: those in ``needs``, and those that its inputs come from."""
        made = {need.step: need for need in (Need(step=n) if isinstance(n, str) else n for n in self.needs)}
        for given in self.inputs.values():
            if (name := given.step()) is not None:
                made.setdefault(name, Need(step=name))
        return tuple(made.values())

    def definition(self) -> Step:
        assert self.step is not None, "resolve() first"
        return self.step

    def sha256(self) -> str:
        """Of what is done and with which settings, not of when, nor of where its inputs were taken from."""
        # A folder in a lab is content, and without one a path; what was in it stands in the result.
        definition = self.definition().model_dump(mode="json")
        return digest({"step": {**definition, "inputs": sorted(definition["inputs"])}, "set": self.set})

    def same_key(self) -> str:
        """Results with this key are of the same thing: the kind and what ``same`` names."""
        step = self.definition()
        return " ".join([step.kind, *(f"{name}={self.set[name]}" for name in step.same)])

    def expected_key(self) -> str:
        return self.definition().expected or self.same_key()


class Graph(Model):
    """The steps of one submission."""

    version: Literal[1] = 1
    name: Name
    kind: Name = Field(default="check", description="kinds of submissions have policies of their own")
    help: str = ""
    parameters: dict[Word, Parameter] = {}
    steps: dict[Name, Use]

    def ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        todo = [name]
        while todo:
            for edge in self.steps[todo.pop()].edges():
                if edge.step in self.steps and edge.step not in found:
                    found.add(edge.step)
                    todo.append(edge.step)
        return found


# -- what comes next ----------------------------------------------------------------------------------------------

#: States of a step that no longer change.
Ended = Literal["passed", "failed", "cancelled", "skipped"]


def decide(use: Use, ended: Mapping[str, tuple[Ended, Mapping[str, Any]]]) -> Literal["blocked", "ready", "skipped"]:
    """What a step may do, given those that ended: name -> (state, output).

    Skipped: an edge's step was skipped or cancelled, or its predicate does not hold (with ``join: any``: all of them).
    Raises WrongInput for a predicate that cannot be read; :func:`resolve` has refused those.
    """
    edges = use.edges()
    answers = [holds(edge.when, *ended[edge.step]) if edge.step in ended else None for edge in edges]
    if use.join == "any" and edges:
        if True in answers:
            # The others are waited for, so that the same graph takes the same path however fast its steps are.
            return "blocked" if None in answers else "ready"
        return "blocked" if None in answers else "skipped"
    if False in answers:
        return "skipped"
    return "blocked" if None in answers else "ready"


def holds(when: str, state: Ended, output: Mapping[str, Any]) -> bool:
    """Whether an edge with this predicate lets pass, when the step before it ended so."""
    if state in ("skipped", "cancelled"):
        return False
    terms = parse_when(when)
    if state != "passed" and not any(key == "state" for key, _, _ in terms):
        return False
    return all(_term(term, {**flat(output), "state": [state]}) for term in terms)


_TERM = re.compile(r"(!?)([A-Za-z_][\w.-]*)(:|!=|>=|<=|=|>|<)(\S*)")


def parse_when(text: str) -> list[tuple[str, str, str]]:
    """``"conflict:false new<=3"`` -> [("conflict", ":", "false"), ("new", "<=", "3")].  Raises WrongInput."""
    terms = []
    for word in text.split():
        match = _TERM.fullmatch(word)
        if not match:
            raise WrongInput(f"{word!r} is no term of a predicate", hint="as in conflict:false or new<=3")
        sign, key, operator, value = match.groups()
        terms.append((key, "!=" if sign and operator == ":" else operator, value))
    return terms


def flat(output: Mapping[str, Any], prefix: str = "") -> dict[str, list[str]]:
    """Keys with dots, and their values as text; a list is several values of one key."""
    made: dict[str, list[str]] = {}
    for key, value in output.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            made.update(flat(value, f"{name}."))
        else:
            made[name] = [_text(one) for one in (value if isinstance(value, list) else [value])]
    return made


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _term(term: tuple[str, str, str], facts: Mapping[str, list[str]]) -> bool:
    key, operator, wanted = term
    values = facts.get(key, [])
    if operator == "!=":
        return wanted not in values
    if operator in (":", "="):
        return wanted in values
    try:
        limit, numbers = float(wanted), [float(value) for value in values]
    except ValueError:
        return False
    compare: dict[str, Callable[[float], bool]] = {
        ">=": lambda n: n >= limit,
        "<=": lambda n: n <= limit,
        ">": lambda n: n > limit,
        "<": lambda n: n < limit,
    }
    return any(map(compare[operator], numbers))


def output_text(output: Mapping[str, Any]) -> str:
    """The output of a step as the input of another one: the same text wherever it is made."""
    return json.dumps(output, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# -- reading ------------------------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """The steps that come with Evenkeel: name -> file."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*" + SUFFIX))}


def read_step(file: str | Path) -> Step:
    """The definition in a file, with its scripts in it.  Raises WrongInput with file and line."""
    path = Path(file)
    step, places = read_model(Step, _text_of(path), str(path))
    complaints = [placed(places, where, message, hint) for where, message, hint in _wrong_step(step)]
    if not isinstance(step.scripts, dict):
        texts: dict[str, str] = {}
        for index, name in enumerate(step.scripts):
            if Path(name).name != name:
                continue  # told already
            try:
                texts[name] = _text_of(path.parent / name)
            except WrongInput as error:
                complaints.append(placed(places, ("scripts", index), error.message, error.hint))
        step = step.model_copy(update={"scripts": texts})
    _raise(complaints)
    return step


def find_step(name: str, *, beside: Path | None = None) -> Step:
    """A shipped step by its name, or a definition by its file (a name with ``/`` or ``.yaml``).  Raises WrongInput."""
    if "/" in name or name.endswith((SUFFIX, ".yml")):
        return read_step((beside or Path()) / name)
    known = shipped()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise WrongInput(
            f"there is no shipped step {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            hint="evenkeel lab steps lists them; a file of your own is named with ./ or .yaml",
        )
    return read_step(known[name])


def read_graph(file: str | Path, given: Mapping[str, str] | None = None) -> Graph:
    """The whole graph in a file, with parameters set.  Raises WrongInput with file and line."""
    path = Path(file)
    graph, places = read_model(Graph, _text_of(path), str(path))
    return resolve(graph, given or {}, lambda name: find_step(name, beside=path.parent), places)


def read_graph_text(text: str, given: Mapping[str, str] | None = None, file: str = "the text") -> Graph:
    """The whole graph in a text of YAML that nothing lies beside: only shipped steps, and those defined in it."""
    graph, places = read_model(Graph, text, file)
    return resolve(graph, given or {}, _only_shipped, places)


def graph_of(data: Any, given: Mapping[str, str] | None = None) -> Graph:
    """The whole graph of a request (JSON).  ``uses`` may name shipped steps only.  Raises WrongInput."""
    places = Places("the request")
    try:
        graph = Graph.model_validate(data)
    except ValidationError as error:
        raise explained(error, Graph, places) from None
    return resolve(graph, given or {}, _only_shipped, places)


def _only_shipped(name: str) -> Step:
    if name not in shipped():
        raise WrongInput(
            f"there is no shipped step {name!r}", hint="send the definition itself under step; the command line does so"
        )
    return find_step(name)


def graph_of_step(step: Step, given: Mapping[str, str], inputs: Mapping[str, Input] | None = None) -> Graph:
    """A graph of this one step.  Raises WrongInput."""
    use = Use(step=step, set=dict(given), inputs=dict(inputs or {}))
    return resolve(Graph(name=step.kind, steps={step.kind: use}), {}, _only_shipped, None)


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """``["arch=arm64"]`` -> {"arch": "arm64"}.  Raises WrongInput."""
    made = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise WrongInput(f"{word!r} is no setting", hint="as in --set arch=arm64")
        made[name] = value
    return made


def parse_inputs(words: Sequence[str]) -> dict[str, Input]:
    """``["source=folder", "tree=git:/srv/linux.git#next"]`` -> inputs.  Raises WrongInput."""
    made = {}
    for name, value in parse_settings(words).items():
        if value.startswith("git:"):
            url, _, ref = value.removeprefix("git:").partition("#")
            made[name] = Input(git=url, ref=ref or "HEAD")
        else:
            made[name] = Input(file=value)
    return made


def is_graph(file: str | Path) -> bool:
    """Whether a file describes a graph, and not one step.  Raises WrongInput when it cannot be read."""
    data, _ = read_yaml(_text_of(Path(file)), str(file))
    return isinstance(data, dict) and "steps" in data


def _text_of(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise WrongInput(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_SCRIPT:
        raise WrongInput(f"{path} is too large", hint=f"{MAX_SCRIPT >> 20} MiB at most")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise WrongInput("not UTF-8 text", where=Where(str(path))) from None


# -- making it whole ----------------------------------------------------------------------------------------------


def resolve(graph: Graph, given: Mapping[str, str], load: Callable[[str], Step], places: Places | None = None) -> Graph:
    """Put definitions in, parameters in, and check that it fits together.

    In what comes back every use has its ``step`` with no ``{hole}`` left and all of ``set``; ``resolve`` of it changes
    nothing.  Raises WrongInput; all that is wrong at once, with file and line where ``places`` knows them.
    """
    places = places or Places("the graph")
    complaints: list[WrongInput] = []

    def complain(path: tuple[str | int, ...], message: str, hint: str | None = None) -> None:
        complaints.append(placed(places, path, message, hint))

    frame = Step(kind=graph.name, parameters=graph.parameters, command=())
    try:
        settings = frame.settings(given)
    except WrongInput as error:
        raise WrongInput(error.message.replace("step ", "graph ", 1), hint=error.hint) from None
    steps: dict[str, Use] = {}
    for name, use in graph.steps.items():
        path: tuple[str | int, ...] = ("steps", name)
        try:
            steps[name] = _resolve_use(use, settings, load)
        except WrongInput as error:
            if error.where:  # inside the file of the definition
                complaints.extend((error, *getattr(error, "others", ())))
            else:
                complain((*path, *getattr(error, "path", ("set",))), error.message, error.hint)
            steps[name] = use
        else:
            for where_in, message, hint in _wrong_step(steps[name].definition()):
                complain((*path, "step", *where_in), f'step "{name}": {message}', hint)
    fixed = {name: one.model_copy(update={"default": settings[name]}) for name, one in graph.parameters.items()}
    whole = graph.model_copy(update={"steps": steps, "parameters": fixed})
    for where, message, hint in _wrong_graph(whole):
        complain(where, message, hint)
    _raise(complaints)
    return whole


class _Wrong(WrongInput):
    """With the key of the use that is wrong."""

    def __init__(self, path: tuple[str | int, ...], message: str, hint: str | None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


def _resolve_use(use: Use, settings: Mapping[str, str], load: Callable[[str], Step]) -> Use:
    if (use.uses is None) == (use.step is None) and use.step is None:
        raise WrongInput("a step needs what it does", hint="uses: NAME, or step: with a definition")
    try:
        step = use.step if use.step is not None else load(use.uses or "")
    except WrongInput as error:
        raise error if error.where else _Wrong(("uses",), error.message, error.hint) from None
    chosen = step.settings({name: _filled(value, settings) for name, value in use.set.items()})
    for name in use.inputs:
        if name not in step.inputs:
            known = ", ".join(step.inputs) or "none"
            raise _Wrong(("inputs", name), f'step {step.kind} has no input "{name}"', f"its inputs: {known}")
    inputs: dict[str, Input] = {}
    for name, wanted in step.inputs.items():
        # What the graph says is filled with the graph's parameters, what the definition says with the step's own.
        taken = _fill_model(use.inputs[name], settings) if name in use.inputs else _fill_model(wanted, chosen)
        taken = taken.model_copy(update={"optional": wanted.optional or taken.optional, "help": wanted.help})
        if taken.source() is None and not taken.optional:
            raise _Wrong(
                ("inputs",),
                f'step {step.kind} needs the input "{name}"' + (f": {wanted.help}" if wanted.help else ""),
                f"--input {name}=PATH; in a graph, under inputs: file, git, artifact, output or baseline",
            )
        inputs[name] = taken
    made = {
        "agent": _filled(step.agent, chosen),
        "machine": _filled(step.machine, chosen),
        "expected": _filled(step.expected, chosen),
        "tools": tuple(_filled(tool, chosen) for tool in step.tools),
        "environment": {key: _filled(value, chosen) for key, value in step.environment.items()},
        "artifacts": {key: _fill_model(value, chosen) for key, value in step.artifacts.items()},
        "inputs": inputs,
    }
    needs = tuple(
        need if isinstance(need, str) else need.model_copy(update={"when": _filled(need.when, settings)})
        for need in use.needs
    )
    whole = step.model_copy(update=made)
    return use.model_copy(update={"step": whole, "set": chosen, "inputs": inputs, "needs": needs})


def _filled(text: str, settings: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in settings:
            raise WrongInput(f"{match[0]} is no parameter here", hint=f"parameters: {', '.join(settings) or 'none'}")
        return settings[match[1]]

    return _HOLE.sub(value, text)


def _fill_model(model: T, settings: Mapping[str, str]) -> T:
    made = {
        key: _filled(value, settings)
        for key in ("file", "git", "ref", "artifact", "output", "baseline", "path")
        if isinstance(value := getattr(model, key, None), str)
    }
    return model.model_copy(update=made)


Complaint = tuple[tuple[str | int, ...], str, str | None]


def _wrong_step(step: Step) -> Iterator[Complaint]:
    if not step.command:
        yield ("command",), "the command is empty", None
    for name, given in step.inputs.items():
        if sum(getattr(given, kind) is not None for kind in SOURCES) > 1:
            yield ("inputs", name), f'the input "{name}" comes from two places', f"one of {', '.join(SOURCES[:5])}"
    for name, wish in step.artifacts.items():
        parts = Path(wish.path).parts
        if wish.path.startswith("/") or ".." in parts or not parts:
            yield ("artifacts", name, "path"), f"{wish.path!r} is not below $OUT", None
    if step.warnings is not None and step.warnings not in step.artifacts:
        yield ("warnings",), f'"{step.warnings}" is no artifact of this step', f"one of {', '.join(step.artifacts)}"
    for index, name in enumerate(step.same):
        if name not in step.parameters:
            yield ("same", index), f'"{name}" is no parameter of this step', None
    for name in step.scripts:
        if Path(name).name != name or name == "..":
            yield ("scripts", name), f"{name!r} is not the name of a file beside the definition", None
    for name, parameter in step.parameters.items():
        if parameter.default is not None and parameter.choices and parameter.default not in parameter.choices:
            yield ("parameters", name, "default"), f'"{parameter.default}" is not among the choices', None
    for key in step.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", key) or key in ("IN", "OUT", "LIB") or key.startswith("SET_"):
            yield ("environment", key), f"{key!r} cannot be set here", "IN, OUT, LIB and SET_... are the runner's"


def _wrong_graph(graph: Graph) -> Iterator[Complaint]:
    if not graph.steps:
        yield ("steps",), "the graph has no steps", None
    for name, use in graph.steps.items():
        for index, need in enumerate(use.needs):
            path = ("steps", name, "needs", index)
            other = need if isinstance(need, str) else need.step
            if other not in graph.steps:
                close = difflib.get_close_matches(other, graph.steps, n=1)
                guess = f'; did you mean "{close[0]}"?' if close else ""
                yield path, f'"{name}" needs "{other}", which is no step of this graph{guess}', None
            if isinstance(need, Need):
                try:
                    parse_when(need.when)
                except WrongInput as error:
                    yield (*path, "when"), error.message, error.hint
        for key, given in use.inputs.items():
            yield from _wrong_input(graph, name, key, given)
    yield from _cycles(graph)


def _wrong_input(graph: Graph, name: str, key: str, given: Input) -> Iterator[Complaint]:
    path = ("steps", name, "inputs", key)
    if (other := given.step()) is None:
        return
    if other not in graph.steps:
        yield path, f'the input "{key}" comes from "{other}", which is no step of this graph', None
    elif (whole := given.artifact or given.baseline) and (step := graph.steps[other].step) is not None:
        artifact = whole.partition("/")[2]
        if artifact not in step.artifacts:
            known = ", ".join(step.artifacts) or "none"
            yield path, f'step "{other}" has no artifact "{artifact}"', f"its artifacts: {known}"


def _cycles(graph: Graph) -> Iterator[Complaint]:
    for name in graph.steps:
        if name in graph.ancestors(name):
            yield ("steps", name), f'"{name}" would have to end before it begins: its needs lead back to it', None
            return


def _raise(complaints: list[WrongInput]) -> None:
    if complaints:
        raise complaints[0] if len(complaints) == 1 else WrongFile(complaints)
