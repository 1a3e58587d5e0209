"""Tables as Markdown, and numbers as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

# characters that Markdown reads as markup within a cell: * and ~ would be emphasis,
# _ only at the edge of a word, & only where it begins an entity
_MARKUP = re.compile(r'[\\`|<\[*~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)')
# joiners of letters and of emoji, which str.isprintable refuses
_JOINERS = '\u200c\u200d'


def printable(text: str) -> str:
    """Make characters visible that would act on a terminal or break a line.

    Args:
        text (str): Any text, such as the name of a class or a file.

    Returns:
        str: Control and format characters as Python escapes, a newline as ``\\n``.
    """
    return ''.join(
        c
        if c.isprintable() or c in _JOINERS
        else c.encode('unicode_escape').decode('ascii')
        for c in text
    )


def escape(text: str) -> str:
    """Write a text so that Markdown shows it as it is within one cell of a table.

    Args:
        text (str): Any text.

    Returns:
        str: One line; spaces at its ends, which Markdown drops, as ``␣``.
    """
    text = _MARKUP.sub(r'\\\g<0>', printable(text))
    inner = text.strip(' ')
    if not inner:
        return '␣' * len(text)
    left = len(text) - len(text.lstrip(' '))
    return '␣' * left + inner + '␣' * (len(text) - left - len(inner))


def to_markdown(
    head: Sequence[str], body: Sequence[Sequence[str]], texts: int = 1
) -> str:
    """Align a table, numbers to the right.

    Args:
        head (Sequence[str]): The header, any text.
        body (Sequence[Sequence[str]]): Lines of as many cells, any text.
        texts (int): How many columns, from the first, are text.

    Returns:
        str: Markdown, without a newline at its end.
    """
    head = [escape(cell) for cell in head]
    body = [
        # numbers may have a star, as a mark of significance
        [escape(c) if i < texts else escape(c).replace(r'\*', '*') for i, c in cells]
        for cells in map(enumerate, body)
    ]
    rule = ['---'] * texts + ['--:'] * (len(head) - texts)
    lines = [head, rule, *body]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join(
        '| '
        + ' | '.join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        )
        + ' |'
        for line in lines
    )


def to_json(value: object, indent: int | None = 2) -> str:
    """Write data as JSON, which has no NaN and no infinity.

    Args:
        value (object): What :func:`json.dumps` takes.
        indent (int, optional): Spaces of a level. Defaults to 2.

    Returns:
        str: JSON, with null for numbers that are not finite.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
