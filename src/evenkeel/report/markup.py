"""HTML and SVG elements that escape everything: text from a document can never become markup.

Only :class:`Markup` is taken as it stands, and only :func:`el` and :func:`trusted` make one.  No page knowledge here.
"""

from __future__ import annotations

import re
from html import escape

#: Elements without content or end tag in HTML.
_VOID = frozenset({"br", "hr", "img", "input", "meta", "link", "col"})
#: Characters that no page may contain: controls (they are not allowed in HTML) and lone surrogates (they cannot be
#: written as UTF-8), both possible in a JSON document.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Content = Markup | str | int | None


def trusted(text: str) -> Markup:
    """Take ``text`` as markup.  For package data and for pictures that escape by themselves, never for a document."""
    return Markup(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text))


def text(value: str | int) -> Markup:
    """``value`` as text, escaped."""
    return Markup(escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True))


def join(*children: Content) -> Markup:
    """The children one after the other; None is left out."""
    return Markup(
        "".join(child if isinstance(child, Markup) else text(child) for child in children if child is not None)
    )


def el(tag: str, *children: Content, **attributes: str | int | bool | None) -> Markup:
    """An element.  ``class_`` is ``class``, other underscores are dashes; True: no value; None, False: left out."""
    parts = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.rstrip("_").replace("_", "-")
        parts.append(name if value is True else f'{name}="{text(value)}"')
    head = " ".join(parts)
    return Markup(f"<{head}>") if tag in _VOID else Markup(f"<{head}>{join(*children)}</{tag}>")
