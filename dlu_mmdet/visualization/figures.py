"""Write figures as PNGs with captions, and an HTML page of them."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..utils.files import atomic_write
from ..utils.plotting import DPI
from .fonts import write_plainly
from .images import file_name, folded

# the PNG standard's keywords; the last one tells our pictures from others'
_TITLE, _CAPTION, _MAKER, _SOURCE = 'Title', 'Description', 'Software', 'Source'
_OURS = 'dlu_mmdet'

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em;
       color: #222; background: white; }
img { max-width: 100%; height: auto; }
figure { margin: 0 0 3em; }
</style>
</head>
<body>
<h1>$title</h1>
$figures
</body>
</html>
""")
_FIGURE = Template("""<figure id="$name">
<h2>$title</h2>
<img src="data:image/png;base64,$data" alt="$title">
<figcaption>$caption</figcaption>
</figure>
""")


def new_figure(width: float, height: float) -> Figure:
    """Make an empty white figure.

    Args:
        width (float): Width in inches.
        height (float): Height in inches.

    Returns:
        Figure: A figure with an Agg canvas, which needs no display and no clean-up.
    """
    figure = Figure((width, height), dpi=DPI, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def map_colors(color_map: str | Colormap, number: int = 48) -> list[str]:
    """Evenly spaced colors of a color map, for :func:`save_figure`.

    Args:
        color_map (str | Colormap): The color map or its name in matplotlib.
        number (int): Number of colors, at least 2. Defaults to 48.

    Returns:
        list[str]: As '#rrggbb'.
    """
    colors = colormaps.get_cmap(color_map)(np.linspace(0, 1, number))
    return [to_hex(color) for color in colors]


def as_image(figure: Figure) -> np.ndarray:
    """Render a figure of :func:`new_figure`.

    Returns:
        np.ndarray: (H, W, 3) uint8, RGB, as mmengine's visualizer takes it.
    """
    write_plainly(figure)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_figure(
    figure: Figure,
    path: str | os.PathLike,
    colors: Sequence[str] = (),
    title: str = '',
    caption: str = '',
    source: str = '',
) -> None:
    """Write a figure as PNG, atomically.

    Args:
        figure (Figure): A figure of :func:`new_figure`.
        path (str or os.PathLike): The file. Missing folders are created.
        colors (Sequence[str]): Up to 200 colors that must stay as they are;
            the others are reduced to a palette of 256 in all, which makes
            photos a third of the size.
        title (str): Stored in the file, for :func:`write_page`.
        caption (str): Stored in the file, for :func:`write_page`.
        source (str): Identifies the content; a hash of it is stored, for
            :func:`free_path`.
    """
    picture = _with_palette(as_image(figure), ['white', 'black', *colors])
    texts = PngInfo()
    for key, text in (
        (_TITLE, title),
        (_CAPTION, caption),
        (_MAKER, _OURS),
        (_SOURCE, _hash(source)),
    ):
        texts.add_itxt(key, text)
    with atomic_write(path) as partial:
        picture.save(partial, format='PNG', optimize=True, pnginfo=texts)


def free_path(folder: str | os.PathLike, name: str, source: str) -> Path:
    """Find a file name that overwrites no picture of another source.

    Args:
        folder (str or os.PathLike): Folder of the picture.
        name (str): Preferred name.
        source (str): Identifies the content, as in :func:`save_figure`.

    Returns:
        Path: A PNG that does not exist, or that :func:`save_figure` wrote for the same
        source.
    """
    stem = re.sub(r'\s+', '-', file_name(name))
    there = {folded(path.name): path for path in Path(folder).glob('*')}
    number = 0
    while True:
        number += 1
        file = f'{stem}-{number}.png' if number > 1 else f'{stem}.png'
        path = there.get(folded(file))
        if path is None:
            return Path(folder, file)
        texts = _read_texts(path)
        if texts.get(_MAKER) == _OURS and texts.get(_SOURCE) == _hash(source):
            return path


def _hash(source: str) -> str:
    """A path says more than a reader of the picture needs to know."""
    return hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:16]


def _read_texts(path: Path) -> dict[str, str]:
    """The texts stored in a PNG; none in what is not one."""
    try:
        with Image.open(path) as picture:
            return dict(getattr(picture, 'text', {}))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return {}


def write_page(folder: str | os.PathLike, title: str = 'Pictures') -> Path:
    """Write ``index.html``, a page with all pictures of a folder.

    The images are embedded, so the page can be sent or moved alone. It has the pictures
    of :func:`save_figure`, sorted by name, each with its title and caption.

    Args:
        folder (str or os.PathLike): Folder of the pictures and of the page.
        title (str): Heading of the page.

    Returns:
        Path: The page.
    """
    figures = []
    for path in sorted(Path(folder).glob('*.png')):
        texts = _read_texts(path)
        if texts.get(_MAKER) != _OURS:
            continue
        figures.append(
            _FIGURE.substitute(
                name=html.escape(path.stem),
                title=html.escape(texts.get(_TITLE) or path.stem),
                caption=html.escape(texts.get(_CAPTION, '')),
                data=base64.b64encode(path.read_bytes()).decode(),
            )
        )
    page = Path(folder, 'index.html')
    content = _PAGE.substitute(title=html.escape(title), figures='\n'.join(figures))
    with atomic_write(page) as partial:
        partial.write_text(content, encoding='utf-8')
    return page


def _with_palette(image: np.ndarray, kept: Sequence[str]) -> Image.Image:
    """Reduce an image (H, W, 3) to 256 colors, ``kept`` among them."""
    palette = [[round(255 * value) for value in to_rgb(color)] for color in kept]

    def reduced() -> Image.Image:
        colors = Image.new('P', (1, 1))
        # unused entries would be black or gray
        colors.putpalette(np.resize(palette, (256, 3)).astype(np.uint8).tobytes())
        return Image.fromarray(image).quantize(palette=colors, dither=Image.Dither.NONE)

    # photos get all other entries, however small a part of the figure they are
    error = np.abs(np.asarray(reduced().convert('RGB')).astype(int) - image)
    others = image[error.max(axis=2) > 6]
    if len(others):
        number = 256 - len(palette)
        found = Image.fromarray(others[None]).quantize(number).getpalette()
        palette += np.reshape(found[: 3 * number], (-1, 3)).tolist()
    picture = reduced()
    # Pillow takes a near entry for the nearest, which tints a white ground
    ground = Image.fromarray((image == palette[0]).all(axis=2))
    picture.paste(0, mask=ground)
    return picture
