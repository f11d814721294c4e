"""BTF of the running kernel: ids of types, and at which offset a field of a structure is.

Only as much is read and put into an index as is asked for: both grow until the name or the number is found, and
structures of the scheduler are among the first.
Format: Documentation/bpf/btf.rst.  Must not load programs.
"""

from __future__ import annotations

import array
import errno
import functools
import os
import struct
from typing import Iterator, NamedTuple

from evenkeel.probe.failure import StepFailed

VMLINUX = "/sys/kernel/btf/vmlinux"
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC = 9, 10, 11, 12, 13, 14, 15
_TYPE_TAG, _ENUM64 = 18, 19
#: Words behind a type's three, by kind: (fixed, for each of vlen).
_EXTRA = {
    **{_INT: (1, 0), _ARRAY: (3, 0), _STRUCT: (0, 3), _UNION: (0, 3), _ENUM: (0, 2), _FUNC_PROTO: (0, 2)},
    **{_VAR: (1, 0), _DATASEC: (0, 3), 17: (1, 0), _ENUM64: (0, 3)},
}
_WORDS = [(3 + _EXTRA.get(kind, (0, 0))[0], _EXTRA.get(kind, (0, 0))[1]) for kind in range(32)]
#: Types by which the index grows, and bytes that are read at a time.
_STEP, _PIECE = 1024, 1 << 16
_SEE_THROUGH = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)


class Type(NamedTuple):
    """One type.  ``size``: bytes, or for a pointer and the like the id of what it is about."""

    id: int
    name: str
    kind: int
    size: int
    vlen: int
    place: int  # the word behind its three
    flag: bool


class Btf:
    """All types of one BTF file.  Raises OSError when there is none, StepFailed when it is no BTF."""

    def __init__(self, path: str = VMLINUX) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - the kernel's stays open, it is read when needed
        head = self._file.read(24)
        if len(head) < 24 or head[:2] != b"\x9f\xeb":
            self._file.close()
            raise StepFailed("%s is no BTF of this machine's byte order" % path, errno.ENOEXEC, path)
        size, types, length, strings, names = struct.unpack_from("=IIIII", head, 4)
        self._types, self._types_end = size + types, size + types + length
        self._strings, self._strings_end = size + strings, size + strings + names
        self._words, self._names = array.array("I"), bytearray()
        #: By id the word at which a type begins; id 0 is void.  Those behind the last are not known yet.
        self._places, self._next = [0], 0

    def _read(self, start: int, end: int) -> bytes:
        """What comes next, to ``end`` at most."""
        parts, left = [], min(_PIECE, end - start)
        while left > 0:
            part = os.pread(self._file.fileno(), left, start)  # a file of sysfs gives no more than a page
            if not part:
                break
            parts.append(part)
            start, left = start + len(part), left - len(part)
        return b"".join(parts)

    def _has(self, word: int) -> bool:
        """Whether there is such a word among the types; what is in front of it is read by then."""
        while word >= len(self._words):
            piece = self._read(self._types + 4 * len(self._words), self._types_end)
            if len(piece) < 4:
                return False
            self._words.frombytes(piece[: len(piece) & ~3])
        return True

    def _more_names(self) -> bool:
        piece = self._read(self._strings + len(self._names), self._strings_end)
        self._names += piece
        return bool(piece)

    def _grow(self) -> bool:
        """Index some more types; False when there are no more."""
        place, words, each = self._next, self._words, _WORDS
        known, most = self._places, len(self._places) + _STEP
        while len(known) < most and (place + 2 < len(words) or self._has(place + 2)):
            known.append(place)
            info = words[place + 1]
            fixed, more = each[info >> 24 & 0x1F]
            place += fixed + more * (info & 0xFFFF)
        self._next = place
        return len(known) == most

    def _name(self, offset: int) -> str:
        while (end := self._names.find(b"\0", offset)) < 0 and self._more_names():
            pass
        return self._names[offset : end if end >= 0 else None].decode("utf-8", "replace")

    def get(self, number: int) -> Type:
        """A type by its id.  Raises IndexError."""
        while number >= len(self._places) and self._grow():
            pass
        word = self._places[number]
        name, info, size = self._words[word : word + 3]
        return Type(number, self._name(name), info >> 24 & 0x1F, size, info & 0xFFFF, word + 3, bool(info >> 31))

    def find(self, name: str, kind: int) -> Type | None:
        """A type by name and kind."""
        for wanted in self._offsets(name) if name else ():
            words, seen, more = self._words, 1, True
            while more:
                more = seen < len(self._places) or self._grow()
                for number in range(seen, len(self._places)):
                    place = self._places[number]
                    if words[place] == wanted and words[place + 1] >> 24 & 0x1F == kind:
                        return self.get(number)
                seen = len(self._places)
        return None

    def _offsets(self, name: str) -> Iterator[int]:
        """Where the name stands among the names: whole ones only, nearly always one."""
        needle, start = b"\0" + name.encode() + b"\0", 0
        while True:
            place = self._names.find(needle, start)
            if place >= 0:
                yield place + 1
                start = place + 1
            else:
                start = max(start, len(self._names) - len(needle))
                if not self._more_names():
                    return

    def resolved(self, number: int) -> Type | None:
        """The type behind typedefs and qualifiers; None for void."""
        while number:
            found = self.get(number)
            if found.kind not in _SEE_THROUGH:
                return found
            number = found.size
        return None

    def function(self, name: str) -> int | None:
        """The id of a kernel function, which fentry programs are loaded for."""
        found = self.find(name, _FUNC)
        return found.id if found else None

    def tracepoint(self, name: str) -> int | None:
        """The id of ``btf_trace_NAME``, which tp_btf programs are loaded for."""
        found = self.find("btf_trace_" + name, _TYPEDEF)
        return found.id if found else None

    def pointer_arguments(self, typedef: int) -> list[str]:
        """Of a ``btf_trace_NAME``: for each argument the structure that it points to, or "".  The first is left out.

        It is a pointer of the tracing code itself and no argument of the tracepoint.
        """
        pointer = self.resolved(typedef)
        proto = self.resolved(pointer.size) if pointer and pointer.kind == _PTR else None
        if proto is None or proto.kind != _FUNC_PROTO:
            return []
        found = []
        for number in range(proto.vlen):
            self._has(proto.place + 2 * number + 1)
            argument = self.resolved(self._words[proto.place + 2 * number + 1])
            target = self.resolved(argument.size) if argument and argument.kind == _PTR else None
            found.append(target.name if target and target.kind == _STRUCT else "")
        return found[1:]

    def field(self, structure: str, path: str) -> tuple[int, int] | None:
        """(offset, size) in bytes of ``path`` (``thread_info.status``) in a structure; None: it has no such field."""
        found = self.find(structure, _STRUCT)
        offset, size = 0, 0
        for name in path.split("."):
            member = self._member(found, name) if found else None
            if member is None:
                return None
            found = self.resolved(member[1])
            offset += member[0]
            size = 8 if found is None or found.kind == _PTR else found.size
        return offset, size

    def _member(self, structure: Type, name: str) -> tuple[int, int] | None:
        """(offset, type id), also of a member of a nameless structure or union inside."""
        for number in range(structure.vlen):
            place = structure.place + 3 * number
            self._has(place + 2)
            label, kind, bits = self._words[place : place + 3]
            offset = (bits & 0xFFFFFF if structure.flag else bits) // 8
            if self._name(label) == name:
                return offset, kind
            inner = self.resolved(kind) if not self._name(label) else None
            if inner is not None and inner.kind in (_STRUCT, _UNION):
                found = self._member(inner, name)
                if found:
                    return offset + found[0], found[1]
        return None


@functools.lru_cache(maxsize=None)
def vmlinux() -> Btf:
    """The running kernel's, read once.  Raises OSError ENOENT for a kernel without BTF."""
    return Btf()
