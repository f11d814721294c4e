"""What all documents share: strict frozen models, byte-stable JSON, a digest, a version.

No I/O: :meth:`Document.to_json` gives text, the caller decides where it goes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from evenkeel.errors import Where, WrongInput


class Model(BaseModel):
    """Base of every part of a document: immutable, and an unknown key is an error."""

    # Built when it is first used: a verb needs a few of the models that it imports, and most only as part of another.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, defer_build=True)


class Document(Model):
    """A document of the river.  Subclasses fix ``kind`` and ``version`` with Literal types."""

    kind: str
    version: int

    #: Keyed by kind, filled by subclassing: what `evenkeel schema` lists.
    registry: ClassVar[dict[str, type[Document]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        Document.registry[cls.__name__] = cls

    def to_json(self) -> str:
        """Canonical text: sorted keys, two spaces, newline at the end.  Same document, same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def sha256(self) -> str:
        return digest(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str, *, file: str) -> Self:
        """Read a saved document.  Raises WrongInput that names ``file`` and the first wrong key."""
        try:
            raw = json.loads(text, parse_constant=_refuse_constant)
            if "\\ud" in text.lower():  # half a character, which JSON can write and no file can hold
                json.dumps(raw, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise WrongInput(
                f"not JSON: {error.msg}",
                where=Where(file, error.lineno, error.colno),
                hint=f"expected a {cls.__name__} document, as written by an evenkeel command",
            ) from None
        except (ValueError, RecursionError) as error:  # a number of 5000 digits, a thousand brackets
            raise WrongInput(f"not a {cls.__name__} document: {error}", where=Where(file)) from None
        found = raw.get("kind") if isinstance(raw, dict) else None
        if found != cls.__name__:
            raise WrongInput(
                f"this is {f'a {found} document' if isinstance(found, str) else 'not an Evenkeel document'}, "
                f"a {cls.__name__} document is needed here",
                where=Where(file),
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise WrongInput(
                f"{place or 'document'}: {first['msg']}",
                where=Where(file),
                hint=f"written by another version of evenkeel? make the {cls.__name__} document anew",
            ) from None


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")


def digest(data: Any) -> str:
    """SHA-256 of the canonical JSON of plain data, as 64 hexadecimal digits."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
