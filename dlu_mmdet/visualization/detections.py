"""Figure of detections and ground truth, one column per detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox
from mmengine.structures import InstanceData

from ..evaluation.matching import Matches
from .figures import new_figure
from .fonts import as_written
from .images import reduced

# color and line style of each kind of box; the dashes are for readers who cannot tell
# red from green
STYLES = {
    'ground truth': ('#e07b00', '-'),
    'true positive': ('#0a8f2f', '-'),
    'false positive': ('#1f5bff', '-'),
    'false negative': ('#e00020', (0, (3, 2))),
    'crowd, not counted': ('#6b6b6b', (0, (1.5, 1.5))),
    'detection, not judged': ('#8a2be2', '-'),
}
KEPT_COLORS = [color for color, _ in STYLES.values()]

# all in inches
_FIGURE_WIDTH = 12.0
_MAX_PANEL_WIDTH = 3.2
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.28, 0.08, 0.34, 0.52
_COLUMN_GAP, _ROW_GAP = 0.07, 0.27
_TOTALS = 0.24
_LINE = 0.14
_MAX_ASPECT = 1.4
# in points
_COUNTS = 7.5


def draw_detections(
    images: Sequence[np.ndarray],
    ground_truths: Sequence[InstanceData] | None,
    detections: Mapping[str, Sequence[InstanceData]],
    matches: Mapping[str, Sequence[Matches]],
    classes: Sequence[str],
    image_names: Sequence[str] | None = None,
    note: str = '',
    totals: Mapping[str, Sequence[int]] | None = None,
    totals_of: str = '',
) -> Figure:
    """Draw the detections of several detectors in several images.

    Each row is an image: the ground truth first, then one panel per detector
    with true positives in green, false positives in blue, and false negatives,
    objects that it did not find, in dashed red. Without ground truth the image
    comes first, and detections are purple. Detections are drawn as given: drop those
    below the score threshold before matching.

    Args:
        images (Sequence[np.ndarray]): N images, each (H, W, 3) uint8, RGB.
        ground_truths (Sequence[InstanceData], optional): N sets of objects,
            with ``bboxes`` (G, 4) float x1 y1 x2 y2 in pixels of the image,
            ``labels`` (G,) int and ``crowd`` (G,) bool, all NumPy. None without
            annotations.
        detections (Mapping[str, Sequence[InstanceData]]): N sets of detections by
            detector, with ``bboxes`` (D, 4), ``labels`` (D,) and ``scores`` (D,), all
            NumPy.
        matches (Mapping[str, Sequence[Matches]]): N results of
            :func:`dlu_mmdet.evaluation.matching.match_detections` by detector; unused
            without ground truth.
        classes (Sequence[str]): Class names, in the order of the labels.
        image_names (Sequence[str], optional): N names to write beside the rows.
        note (str): Title of the legend, e.g. the thresholds.
        totals (Mapping[str, Sequence[int]], optional): TP, FP and FN by detector, to
            write under its column.
        totals_of (str): Title of the totals, e.g. 'these 4 images'.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`,
        with :data:`KEPT_COLORS`.

    Raises:
        ValueError: If there is no image, or the numbers of images, ground
            truths, detections and matches differ.
    """
    image_names = [''] * len(images) if image_names is None else image_names
    _check_lengths(images, ground_truths, detections, matches, image_names)
    width = _panel_width(len(detections) + 1)
    counts = [match.counts for name in matches for match in matches[name]]
    # the same number of lines under all panels
    lines = _lines_needed(counts, width)
    total_lines = _lines_needed((totals or {}).values(), width, 'bold')
    figure, panels = _layout(
        [image.shape[:2] for image in images],
        len(detections) + 1,
        _ROW_GAP + _LINE * (lines - 1),
        _TOTALS + _LINE * (total_lines - 1) if totals else 0,
    )
    drawn = set()
    for row, image in enumerate(images):
        found = {name: detections[name][row] for name in detections}
        truth = None if ground_truths is None else ground_truths[row]
        of_image = {name: matches[name][row] for name in matches}
        contents = panel_contents(found, truth, of_image, lines)
        panels[row, 0].set_ylabel(image_names[row], fontsize=7)
        for axes, (boxes, caption) in zip(panels[row], contents):
            _show(axes, image)
            _draw_boxes(axes, boxes, classes)
            axes.set_xlabel(caption, fontsize=_COUNTS)
            drawn.update(kind for kind, group in boxes if len(group))
    titles = ['image' if ground_truths is None else 'ground truth', *detections]
    for axes, title in zip(panels[0], titles):
        axes.set_title(title, fontsize=11, fontweight='bold', pad=5)
    if totals:
        texts = [f'{totals_of}:']
        texts += [describe_counts(totals[name], total_lines) for name in detections]
        _write_totals(panels[-1], texts, lines)
    kinds = ['ground truth', 'true positive', 'false positive', 'false negative']
    if ground_truths is None:
        kinds = ['detection, not judged']
    elif 'crowd, not counted' in drawn:
        kinds.append('crowd, not counted')
    _draw_legend(figure, kinds, note)
    return figure


def _check_lengths(
    images: Sequence[np.ndarray],
    ground_truths: Sequence[InstanceData] | None,
    detections: Mapping[str, Sequence[InstanceData]],
    matches: Mapping[str, Sequence[Matches]],
    image_names: Sequence[str],
) -> None:
    """Refuse what is not of one number of images; see :func:`draw_detections`."""
    if not len(images):
        raise ValueError('images must hold at least one image, got none')
    per_image: dict[str, Sequence] = {'image_names': image_names}
    if ground_truths is not None:
        per_image['ground_truths'] = ground_truths
    for name in detections:
        per_image[f'detections[{name!r}]'] = detections[name]
        if ground_truths is not None:
            per_image[f'matches[{name!r}]'] = matches.get(name, ())
    for argument, values in per_image.items():
        if len(values) != len(images):
            raise ValueError(
                f'{argument} must have one entry for each of the {len(images)} '
                f'images, got {len(values)}'
            )


#: The boxes of a panel, by kind, and the text under it.
Panel = tuple[list[tuple[str, InstanceData]], str]


def panel_contents(
    found: Mapping[str, InstanceData],
    truth: InstanceData | None,
    matches: Mapping[str, Matches],
    lines: int = 1,
) -> list[Panel]:
    """The boxes and captions of the panels of one image.

    Args:
        found (Mapping[str, InstanceData]): Detections by detector.
        truth (InstanceData, optional): The objects; None if nobody has marked them.
        matches (Mapping[str, Matches]): By detector; not read without ``truth``.
        lines (int): Lines of a caption, up to 3. Defaults to 1.

    Returns:
        list[Panel]: The panel of the image and its objects, then one per detector;
        kinds of boxes are those of :data:`STYLES`, most important first.
    """
    if truth is None:
        return _unjudged_contents(found)
    return _judged_contents(truth, found, matches, lines)


def _unjudged_contents(found: Mapping[str, InstanceData]) -> list[Panel]:
    """The panels of an image that nobody has marked objects in."""
    return [
        ([], ''),
        *(
            ([('detection, not judged', boxes)], _counted(len(boxes), 'detection'))
            for boxes in found.values()
        ),
    ]


def _judged_contents(
    truth: InstanceData,
    found: Mapping[str, InstanceData],
    matches: Mapping[str, Matches],
    lines: int,
) -> list[Panel]:
    """The panels of an image: its objects, then what each detector makes of them."""
    objects = [
        ('ground truth', truth[~truth.crowd]),
        ('crowd, not counted', truth[truth.crowd]),
    ]
    panels = [(objects, _counted((~truth.crowd).sum(), 'object'))]
    for name, boxes in found.items():
        match = matches[name]
        kinds = [
            ('false negative', truth[match.false_negatives]),
            ('true positive', boxes[match.true_positives]),
            ('false positive', boxes[match.false_positives]),
            ('crowd, not counted', boxes[match.det_ignored]),
        ]
        panels.append((kinds, describe_counts(match.counts, lines)))
    return panels


def _write_totals(panels: Sequence[Axes], texts: Sequence[str], lines: int) -> None:
    """Write a text under each column, below so many lines of a caption."""
    for axes, text in zip(panels, texts):
        axes.annotate(
            text,
            (0.5, 0),
            xytext=(0, -10 - 72 * _LINE * lines),
            textcoords='offset points',
            xycoords='axes fraction',
            ha='center',
            va='top',
            fontsize=_COUNTS,
            fontweight='bold',
        )


def _draw_legend(figure: Figure, kinds: Sequence[str], note: str) -> None:
    figure.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, lw=1.8, ec=color, ls=line_style)
            for color, line_style in map(STYLES.__getitem__, kinds)
        ],
        labels=kinds,
        title=note or None,
        loc='lower center',
        ncols=len(kinds),
        frameon=False,
        fontsize=9,
        title_fontsize=8,
    )


def describe_counts(counts: Sequence[int], lines: int = 1) -> str:
    """Numbers of true positives, false positives and false negatives as text.

    Args:
        counts (Sequence[int]): TP, FP and FN.
        lines (int): On how many lines, up to 3. Defaults to 1.

    Returns:
        str: For example ``'3 TP, 1 FP, 0 FN'``.
    """
    tp, fp, fn = counts
    first = '\n' if lines > 1 else ', '
    second = '\n' if lines > 2 else ', '
    return f'{tp} TP{first}{fp} FP{second}{fn} FN'


def _lines_needed(
    counts: Iterable[Sequence[int]], width: float, weight: str = 'normal'
) -> int:
    """On how many lines counts fit under panels of a width in inches, at most 3."""
    counts = list(counts)
    font = FontProperties(size=_COUNTS, weight=weight)
    for lines in (1, 2):
        texts = [text for c in counts for text in describe_counts(c, lines).split('\n')]
        extents = [TextPath((0, 0), text, prop=font).get_extents() for text in texts]
        if all(extent.width <= 72 * width for extent in extents):
            return lines
    return 3


def _panel_width(columns: int) -> float:
    """Width in inches of a panel, one of so many side by side."""
    width = (_FIGURE_WIDTH - _LEFT - _RIGHT) / columns - _COLUMN_GAP
    return min(width, _MAX_PANEL_WIDTH)


def _layout(
    sizes: Sequence[tuple[int, int]], columns: int, row_gap: float, totals: float
) -> tuple[Figure, np.ndarray]:
    """Make the figure and its (rows, columns) axes for images of these sizes."""
    width = _panel_width(columns)
    heights = [width * min(h / w, _MAX_ASPECT) for h, w in sizes]
    figure_width = _LEFT + _RIGHT + columns * (width + _COLUMN_GAP)
    figure_height = _TOP + _BOTTOM + sum(heights) + row_gap * len(sizes) + totals
    figure = new_figure(figure_width, figure_height)
    panels = np.empty((len(sizes), columns), dtype=object)
    top = figure_height - _TOP
    for row, height in enumerate(heights):
        for column in range(columns):
            left = _LEFT + column * (width + _COLUMN_GAP)
            axes = figure.add_axes(
                (
                    left / figure_width,
                    (top - height) / figure_height,
                    width / figure_width,
                    height / figure_height,
                ),
                xticks=[],
                yticks=[],
            )
            axes.spines[:].set_visible(False)
            axes.xaxis.labelpad = axes.yaxis.labelpad = 3
            panels[row, column] = axes
        top -= height + row_gap
    return figure, panels


def _show(axes: Axes, image: np.ndarray) -> None:
    """Show an image so that a box's coordinates are those of pixel edges."""
    axes.imshow(reduced(image), extent=(0, image.shape[1], image.shape[0], 0))


def _draw_boxes(
    axes: Axes, groups: Sequence[tuple[str, InstanceData]], classes: Sequence[str]
) -> None:
    """Draw boxes, most important first, and class names where there is room.

    Where there is one class its name would only hide what is small.
    """
    renderer = axes.figure.canvas.get_renderer()
    # until it is drawn an image panel still has the shape of its slot
    axes.apply_aspect()
    panel = axes.bbox
    _, width, height, _ = axes.images[0].get_extent()
    drawn = [
        (kind, label, np.clip(box, 0, [width, height] * 2))
        for kind, boxes in groups
        for box, label in zip(boxes.bboxes, boxes.labels)
    ]
    line = max(1.0, panel.width / 180)
    scale = panel.width / width
    # the first come last and so on top
    for kind, _, (x1, y1, x2, y2) in reversed(drawn):
        color, style = STYLES[kind]
        # a small object must be seen inside its box
        side = scale * min(x2 - x1, y2 - y1)
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=color,
                linestyle=style,
                linewidth=min(line, max(0.5, side / 12)) * 72 / axes.figure.dpi,
            )
        )
    if len(classes) < 2:
        return
    # names keep off each other and off the middle of small objects
    taken = [
        extent.expanded(0.5, 0.5)
        for _, _, box in drawn
        if (extent := Bbox(axes.transData.transform(box.reshape(2, 2)))).width
        < panel.width / 6
    ]
    gap = 3 * width / panel.width
    for kind, label, (x1, y1, x2, y2) in drawn:
        text = axes.text(
            0,
            0,
            classes[label],
            fontsize=5.5,
            color='white',
            bbox=dict(
                boxstyle='square,pad=0.15', facecolor=STYLES[kind][0], edgecolor='none'
            ),
        )
        as_written(text)
        for x, y, ha, va in (
            (x1 + gap, y1 - gap, 'left', 'bottom'),
            (x1 + gap, y1 + gap, 'left', 'top'),
            (x2 - gap, y1 - gap, 'right', 'bottom'),
            (x2 - gap, y1 + gap, 'right', 'top'),
            (x1 + gap, y2 + gap, 'left', 'top'),
            (x1 + gap, y2 - gap, 'left', 'bottom'),
            (x2 - gap, y2 + gap, 'right', 'top'),
            (x2 - gap, y2 - gap, 'right', 'bottom'),
        ):
            text.set(x=x, y=y, ha=ha, va=va)
            space = text.get_window_extent(renderer).padded(2)
            inside = panel.contains(*space.min) and panel.contains(*space.max)
            if inside and not space.count_overlaps(taken):
                taken.append(space)
                break
        else:
            # a box without a name tells more than two names on top of each other
            text.remove()


def _counted(number: int, singular: str, plural: str = '') -> str:
    """Put a number before a noun, in the plural where it needs one."""
    return f'{number} {singular if number == 1 else plural or singular + "s"}'
