"""An exported model beside the PyTorch module that it was: its size, and time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from ..utils.tables import to_markdown
from ..utils.timing import interleaved
from .onnx import Part
from .verify import OnnxModel


def summary(path: str | os.PathLike) -> str:
    """What goes into an exported model and what comes out, one line each."""
    import onnx

    proto = onnx.load(str(path))
    opset = ', '.join(str(entry.version) for entry in proto.opset_import)
    lines = [
        f'opset {opset}, {len(proto.graph.node)} nodes, '
        f'{os.path.getsize(path) * 1e-6:.1f} MB'
    ]
    session = OnnxModel(path).session
    for kind, values in (
        ('in', session.get_inputs()),
        ('out', session.get_outputs()),
    ):
        for value in values:
            lines.append(
                f'{kind:>3}  {value.name}  {" x ".join(map(str, value.shape))}'
            )
    return '\n'.join(lines)


def check_sizes(part: Part, sizes: Sequence[tuple[int, int]]) -> None:
    """Find out whether a part takes images of these sizes.

    Args:
        part (Part): What is exported.
        sizes (Sequence[tuple[int, int]]): Height and width in pixels.

    Raises:
        ValueError: If a size is no multiple of the part's divisor.
    """
    for size in sizes:
        if any(length < 1 or length % part.divisor for length in size):
            raise ValueError(
                f'--time {size[0]}x{size[1]}: height and width must be multiples of '
                f'{part.divisor}, as those of the exported model'
            )


def time_table(
    part: Part,
    path: str | os.PathLike,
    sizes: Sequence[tuple[int, int]],
    rounds: int = 5,
) -> str:
    """Time an exported model and its module in turn, on one image.

    Args:
        part (Part): What was exported.
        path (str | PathLike): The result.
        sizes (Sequence[tuple[int, int]]): Height and width of the image in pixels,
            multiples of the part's divisor.
        rounds (int): Runs of each, interleaved.

    Returns:
        str: A Markdown table.

    Raises:
        ValueError: If a size is no multiple.
    """
    check_sizes(part, sizes)
    model = OnnxModel(path)
    body = []
    for h, w in sizes:
        inputs = part.make(1, h // part.divisor, w // part.divisor)
        with torch.no_grad():
            times = interleaved(
                [lambda: part.module(inputs), lambda: model(inputs)],  # noqa: B023
                rounds,
                torch.device('cpu'),
            )
        (eager, eager_least), (run, run_least) = times
        cells = (eager, run, eager_least, run_least)
        body.append(
            [f'{h} x {w}', *(f'{1e3 * t:.0f}' for t in cells), f'{run / eager:.2f}']
        )
    head = [
        'image',
        'PyTorch, median ms',
        'onnxruntime, median ms',
        'PyTorch, least',
        'onnxruntime, least',
        'median to PyTorch',
    ]
    return to_markdown(head, body)
