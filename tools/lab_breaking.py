"""What of a changed REST contract breaks programs that were written for the old one: ``breaking(old, new)``.

A program that sends what the old contract allowed must be understood as before, and one that reads what it promised
must find that.  Pure: contracts (OpenAPI 3.1, as FastAPI writes them) in, sentences out.  Names, types, values and what
is required are compared; patterns, lengths, ranges and descriptions are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]
_METHODS = ("get", "put", "post", "delete", "patch")
_NOTHING: Json = {}


def breaking(old: Json, new: Json) -> list[str]:
    """One sentence for each break; empty: whoever used the old one can go on."""
    return sorted(set(_Compared(old, new).all()))


class _Compared:
    def __init__(self, old: Json, new: Json) -> None:
        self.old, self.new = old, new
        self._seen: set[tuple[int, int, bool]] = set()

    def all(self) -> Iterator[str]:
        for path, operations in self.old["paths"].items():
            there = self.new["paths"].get(path)
            if there is None:
                yield f"{path} is gone"
                continue
            for method in _METHODS:
                if method in operations and method not in there:
                    yield f"{method.upper()} {path} is gone"
                elif method in operations:
                    yield from self._operation(f"{method.upper()} {path}", operations[method], there[method])

    def _operation(self, name: str, old: Json, new: Json) -> Iterator[str]:
        before, after = _parameters(old), _parameters(new)
        for key, one in before.items():
            where = f"{name}, {key[0]} {key[1]}"
            if key not in after:
                yield f"{where}: is not taken any more"
            else:
                yield from self._sent(where, one.get("schema", _NOTHING), after[key].get("schema", _NOTHING))
        for key, one in after.items():
            if one.get("required") and not before.get(key, _NOTHING).get("required"):
                yield f"{name}, {key[0]} {key[1]}: is needed now"
        yield from self._body(name, old.get("requestBody"), new.get("requestBody"))
        for status, answer in old.get("responses", _NOTHING).items():
            if not status.startswith("2"):
                continue
            there = new.get("responses", _NOTHING).get(status)
            if there is None:
                yield f"{name}: does not answer {status} any more"
                continue
            for media, content in answer.get("content", _NOTHING).items():
                if media not in there.get("content", _NOTHING):
                    yield f"{name}: does not answer {media} any more"
                else:
                    known = content.get("schema", _NOTHING), there["content"][media].get("schema", _NOTHING)
                    yield from self._told(f"{name}, answer", *known)

    def _body(self, name: str, old: Json | None, new: Json | None) -> Iterator[str]:
        if old is None and new is not None and new.get("required"):
            yield f"{name}: needs a body now"
        if old is None:
            return
        if new is None:
            yield f"{name}: takes no body any more"
            return
        if new.get("required") and not old.get("required"):
            yield f"{name}: needs a body now"
        for media, content in old.get("content", _NOTHING).items():
            if media not in new.get("content", _NOTHING):
                yield f"{name}: does not take {media} any more"
            else:
                there = new["content"][media].get("schema", _NOTHING)
                yield from self._sent(f"{name}, body", content.get("schema", _NOTHING), there)

    # -- schemas --------------------------------------------------------------------------------------------------

    def _sent(self, where: str, old: Json, new: Json) -> Iterator[str]:
        """All that the old one allows must be allowed still."""
        yield from self._schema(where, old, new, sent=True)

    def _told(self, where: str, old: Json, new: Json) -> Iterator[str]:
        """All that the old one promises must be there still, and nothing that it excludes."""
        yield from self._schema(where, old, new, sent=False)

    def _schema(self, where: str, old: Json, new: Json, *, sent: bool) -> Iterator[str]:
        old, new = _named(self.old, old), _named(self.new, new)
        if (id(old), id(new), sent) in self._seen:  # one that has itself in it, or was looked at elsewhere
            return
        self._seen.add((id(old), id(new), sent))
        before, after = _choices(self.old, old), _choices(self.new, new)
        yield from self._kinds(where, _kinds(before), _kinds(after), sent=sent)
        known, now = _values(before), _values(after)
        if now is not None:
            # A word that is new in an answer breaks nobody who takes it for one that they do not know.
            gone = sorted(known - now) if known is not None else ["any other"] if sent else []
            yield from (f"{where}: {value} is not {'taken' if sent else 'answered'} any more" for value in gone)
        yield from self._fields(where, old, new, sent=sent)
        for key in ("items", "additionalProperties"):
            if isinstance(old.get(key), Mapping) and isinstance(new.get(key), Mapping):
                yield from self._schema(f"{where}[]", old[key], new[key], sent=sent)
        if before != [old] or after != [new]:
            for one, other in _alike(before, after):
                yield from self._schema(where, one, other, sent=sent)

    @staticmethod
    def _kinds(where: str, old: set[str] | None, new: set[str] | None, *, sent: bool) -> Iterator[str]:
        # Who sends must keep to the new one, who reads to the old one.
        narrow, wide = (old, new) if sent else (new, old)
        if wide is None:
            return
        more = {"anything"} if narrow is None else narrow - wide
        if "number" in wide:
            more = more - {"integer"}
        if more:
            what = ", ".join(sorted(more))
            yield f"{where}: may not be {what} any more" if sent else f"{where}: may be {what} now"

    def _fields(self, where: str, old: Json, new: Json, *, sent: bool) -> Iterator[str]:
        before, after = old.get("properties", _NOTHING), new.get("properties", _NOTHING)
        for key, one in before.items():
            if key not in after:
                # Where any name is taken, a name that is gone is taken as before.
                if not sent or new.get("additionalProperties") is False:
                    yield f"{where}.{key}: is {'not taken any more' if sent else 'gone'}"
                continue
            yield from self._schema(f"{where}.{key}", one, after[key], sent=sent)
        needed, promised = set(new.get("required", ())), set(old.get("required", ()))
        if sent:
            yield from (f"{where}.{key}: is needed now" for key in sorted(needed - promised))
        else:
            yield from (f"{where}.{key}: may be missing now" for key in sorted((promised - needed) & after.keys()))


def _parameters(operation: Json) -> dict[tuple[str, str], Json]:
    return {(one["in"], one["name"]): one for one in operation.get("parameters", ())}


def _named(contract: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = contract["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _choices(contract: Json, schema: Json) -> list[Json]:
    """The schemas of which it is one; itself, when there is no choice."""
    schema = _named(contract, schema)
    several = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return [one for part in several for one in _choices(contract, part)] if several else [schema]


def _kinds(choices: list[Json]) -> set[str] | None:
    """JSON types that it may have; None: any."""
    kinds: set[str] = set()
    for one in choices:
        kind = one.get("type", "string" if "enum" in one or "const" in one else None)
        if kind is None:
            return None
        kinds |= set(kind if isinstance(kind, list) else [kind])
    return kinds


def _values(choices: list[Json]) -> set[str] | None:
    """The words that it may be; None: any, or it is no word."""
    values: set[str] = set()
    for one in choices:
        if "enum" in one or "const" in one:
            values |= {repr(value) for value in one.get("enum", [one.get("const")])}
        elif one.get("type") in ("string", None):
            return None
    return values or None


def _alike(before: list[Json], after: list[Json]) -> Iterator[tuple[Json, Json]]:
    """Of what it may be, each with what it may be now: the only object, the only list, or the one of that name."""
    for kind in ("object", "array"):
        ours, theirs = ([one for one in some if one.get("type") == kind] for some in (before, after))
        if len(ours) == len(theirs) == 1:
            yield ours[0], theirs[0]
            continue
        named = {one.get("title"): one for one in theirs}
        yield from ((one, named[one.get("title")]) for one in ours if one.get("title") in named)
