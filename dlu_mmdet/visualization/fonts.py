"""Draw any text literally, in fonts that have its characters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache

import matplotlib
from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text


def as_written(text: Text) -> Text:
    """Draw a text literally.

    ``$`` does not start mathematics, and characters missing in matplotlib's font come
    from another installed font.

    Args:
        text (Text): Part of a figure.

    Returns:
        Text: The same.
    """
    text.set_parse_math(False)
    fallbacks = fallback_fonts(text.get_text())
    if fallbacks:
        text.set_fontfamily([*matplotlib.rcParams['font.family'], *fallbacks])
    return text


def write_plainly(figure: Figure) -> None:
    """Apply :func:`as_written` to all texts of a figure except tick labels."""
    ticks = {
        label
        for axis in figure.findobj(Axis)
        for label in axis.get_ticklabels(which='both')
    }
    for text in figure.findobj(Text):
        if text not in ticks:
            as_written(text)


def plain_settings(texts: Iterable[str]) -> dict:
    """Settings of matplotlib with the effect of :func:`as_written`.

    Args:
        texts (Iterable[str]): Texts to be drawn, e.g. class names.

    Returns:
        dict: Arguments of ``matplotlib.rc_context``.
    """
    families = matplotlib.rcParams['font.sans-serif']
    # a generic family falls back to no other, so the first must have them all
    fallbacks = fallback_fonts(''.join(texts))
    return {'text.parse_math': False, 'font.sans-serif': [*fallbacks, *families]}


def fallback_fonts(text: str) -> list[str]:
    """Installed font families with the characters that matplotlib's font lacks.

    Warns once about characters that no font has.

    Args:
        text (str): The text to be drawn.

    Returns:
        list[str]: Family names; empty if matplotlib's font has all characters.
    """
    return _fallback_fonts(frozenset(c for c in text if c.isprintable()))


@cache
def _fallback_fonts(characters: frozenset[str]) -> list[str]:
    own = font_manager.findfont(font_manager.FontProperties())
    missing = characters - _characters(own)
    if not missing:
        return []
    families = []
    for font in _other_fonts():
        found = missing & _characters(font.fname)
        if found:
            families.append(font.name)
            missing -= found
        if not missing:
            return families
    _warn(''.join(sorted(missing)))
    return families


@cache
def _warn(missing: str) -> None:
    warnings.warn(
        f'no installed font has {" ".join(missing)}: a picture shows boxes instead; '
        'install one that has them, such as Noto Sans CJK for Chinese, Japanese and '
        'Korean (package fonts-noto-cjk)',
        stacklevel=2,
    )
    # said once, not again for every character and picture
    warnings.filterwarnings('ignore', r'Glyph \d+ .* missing from', UserWarning)


def _other_fonts() -> Iterable[font_manager.FontEntry]:
    """The fonts that matplotlib knows, upright ones first, then those it does not."""
    manager = font_manager.fontManager
    known = [
        font
        for font in manager.ttflist
        # it has a box for everything
        if not font.name.lstrip('.').startswith(('Last Resort', 'LastResort'))
    ]
    yield from sorted(
        known, key=lambda font: (font.style != 'normal', font.weight not in (400, 500))
    )
    # its list is of the day when it was first used
    paths = {font.fname for font in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in paths:
            try:
                manager.addfont(path)
            except (OSError, RuntimeError):
                continue  # as matplotlib's own search does
            yield manager.ttflist[-1]


@cache
def _characters(path: str) -> frozenset[str]:
    """The characters that a font file has."""
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()  # gone since matplotlib made its list
