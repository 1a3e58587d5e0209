"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def to_markdown(
    head: Sequence[str], body: Sequence[Sequence[str]], texts: int = 1
) -> str:
    """Align a table, numbers to the right.

    Args:
        head (Sequence[str]): The header.
        body (Sequence[Sequence[str]]): Lines of as many cells.
        texts (int): How many columns, from the first, are text.

    Returns:
        str: Markdown, without a newline at its end.
    """
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
