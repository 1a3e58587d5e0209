"""An exported model held against the PyTorch module that it was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .onnx import Part

#: Largest difference that passes, relative to the largest value of an output where
#: that is above 1. Rounding gives 1e-6 to 1e-4.
TOLERANCE = 1e-3
#: Batch, height and width in units of the divisor; none of them was traced.
SIZES = ((1, 3, 1), (2, 1, 4))
# scores that rounding puts on either side of a threshold or of the end of a list
_TIE = 1e-4


class OnnxModel:
    """An ONNX model on onnxruntime's CPU, called as the module that it was.

    Args:
        path (str | PathLike): The .onnx file.
        threads (int): CPU threads. Defaults to those of torch.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the model on tensors, in the order of its inputs."""
        names = [value.name for value in self.session.get_inputs()]
        feeds = {name: x.numpy() for name, x in zip(names, inputs)}
        return list(map(torch.from_numpy, self.session.run(None, feeds)))


@dataclass(frozen=True)
class Agreement:
    """How far two sets of outputs agree.

    Attributes:
        difference (float): The largest, relative to the largest value of an output
            where that is above 1; NaN where an output is not finite.
        detections (int, optional): How many were compared; None for maps.
        output (str): The output with the largest difference.
    """

    difference: float
    detections: int | None = None
    output: str = 'detections'

    @property
    def close(self) -> bool:
        """Whether it is within :data:`TOLERANCE`; never with NaN."""
        return self.difference <= TOLERANCE


def compare(part: Part, expected: Iterable[Tensor], got: Iterable[Tensor]) -> Agreement:
    """Compare the outputs of a part with others of the same inputs.

    Of boxes, slots without a detection are left out, and the order does not count.
    A detection that one side alone has is left out too where rounding decides whether
    it is there: its score is within 1e-4 of the threshold, or of the last of a full
    list.

    Args:
        part (Part): What was run.
        expected (Iterable[Tensor]): Outputs.
        got (Iterable[Tensor]): Outputs.

    Returns:
        Agreement: Between the two.
    """
    expected, got = list(expected), list(got)
    if part.detects:
        found = [
            _match(part.threshold, *each) for each in zip(zip(*expected), zip(*got))
        ]
        differences, numbers = zip(*found)
        return Agreement(_max(differences), sum(numbers))
    largest = []
    for x, y in zip(expected, got):
        same = x.shape == y.shape
        largest.append(float(_relative(x, y).max()) if same else float('inf'))
    worst = int(torch.tensor(largest).nan_to_num(float('inf')).argmax())
    return Agreement(largest[worst], None, part.outputs[worst])


def _max(values: Iterable[float | Tensor]) -> float:
    # Python's max loses NaN
    return torch.tensor([float(value) for value in values]).max().item()


def _relative(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    return (y - x).abs() / x.abs().max().clamp(min=1)


def _match(
    threshold: float, expected: Sequence[Tensor], got: Sequence[Tensor]
) -> tuple[float | Tensor, int]:
    """Largest difference of the detections of an image, and their number."""
    sides, labels = [], []
    for box, score, label in (expected, got):
        kept = score > 0
        box, scale = box[kept], expected[0][expected[1] > 0].abs()
        if not (box.isfinite().all() and score.isfinite().all()):
            return float('nan'), 0
        if len(scale):
            box = box / scale.max().clamp(min=1)
        row = torch.cat([box, score[kept, None]], 1)
        sides.append(row.double())
        labels.append(label[kept])
    if not any(map(len, sides)):
        return 0.0, 0
    worst, numbers = torch.zeros((), dtype=torch.double), []
    apart = torch.cdist(*sides, p=float('inf'))
    apart[labels[0][:, None] != labels[1]] = float('inf')
    for side, axis in zip(sides, (1, 0)):
        if not len(side):
            continue
        full = len(side) == len(expected[0])
        lowest = side[:, 4].min() if full else side.new_tensor(threshold)
        alone = torch.full((len(side),), float('inf'), dtype=torch.double)
        nearest = apart.amin(axis) if apart.shape[axis] else alone
        counted = (nearest <= TOLERANCE) | (side[:, 4] > lowest + _TIE)
        numbers.append(int(counted.sum()))
        if counted.any():
            worst = torch.maximum(worst, nearest[counted].max())
    return worst, max(numbers)


def noise(batch: int, height: int, width: int) -> Tensor:
    """Random images (batch, 3, height, width), in which detectors find something.

    Noise of single pixels, of blocks of 8 and of blocks of 32 pixels, added up.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(batch, 3, height, width)
    for block in (1, 8, 32):
        sizes = (-(-length // block) for length in (height, width))
        coarse = torch.randn(batch, 3, *sizes, generator=generator)
        fine = F.interpolate(coarse, scale_factor=block, mode='nearest')
        image += fine[:, :, :height, :width]
    return image / 3**0.5


def _trials(
    part: Part, batch: int, height: int, width: int
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Random inputs, and what PyTorch makes of them.

    For boxes images of more and more contrast: an untrained detector may find nothing,
    or have equal scores, of which rounding decides which is the higher.
    """
    if not part.detects:
        inputs = part.make(batch, height, width)
        yield inputs, part.module(inputs)
        return
    images = noise(batch, part.divisor * height, part.divisor * width)
    for factor in (1, 4, 16, 64):
        inputs = (factor * images,)
        yield inputs, part.module(inputs)


def _decide(found: Iterable[Agreement]) -> Agreement:
    """The first agreeing trial, else the first failing one."""
    others = []
    for each in found:
        if each.close and each.detections != 0:
            return each
        others.append(each)
    return next((each for each in others if not each.close), others[0])


def agreement(
    part: Part, model: OnnxModel, batch: int, height: int, width: int
) -> Agreement:
    """Run an exported model and the module that it was on random inputs.

    Args:
        part (Part): What was exported.
        model (OnnxModel): The result.
        batch (int): Images.
        height (int): In units of the part's divisor.
        width (int): Likewise.

    Returns:
        Agreement: Of their outputs.

    Raises:
        ValueError: If PyTorch does not run them, or its outputs are not finite.
    """
    try:
        with torch.no_grad():
            return _decide(
                compare(part, _finite(part, expected), model(inputs))
                for inputs, expected in _trials(part, batch, height, width)
            )
    except RuntimeError as error:
        raise ValueError(
            f'PyTorch does not run batch {batch} of {part.divisor * height} x '
            f'{part.divisor * width} pixels ({error}); use a larger --divisor'
        ) from error


def _finite(part: Part, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    # boxes of slots without a detection may be anything
    values = outputs[1:2] if part.detects else outputs
    if not all(x.isfinite().all() for x in values):
        raise ValueError(
            'PyTorch gives numbers that are not finite; the training has diverged, '
            'take an earlier checkpoint'
        )
    return outputs


def verify(part: Part, path: str | os.PathLike) -> Agreement:
    """Hold an exported model against the module that it was, at sizes not traced.

    Args:
        part (Part): What was exported.
        path (str | PathLike): The result.

    Returns:
        Agreement: The largest difference over :data:`SIZES`, and the number of
        detections.

    Raises:
        ValueError: If onnxruntime does not run the model, or it differs by more than
            :data:`TOLERANCE`.
    """
    try:
        model = OnnxModel(path)
        found = [agreement(part, model, *size) for size in SIZES]
    except Exception as error:  # onnxruntime's errors have no base of their own
        if not type(error).__module__.startswith('onnxruntime'):
            raise
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'onnxruntime does not run the model, which is not kept: {reason}'
        ) from error
    for (batch, height, width), each in zip(SIZES, found):
        if not each.close:
            raise ValueError(
                f'{each.output} of onnxruntime differ from those of PyTorch by '
                f'{each.difference:.1e} at batch {batch} and {part.divisor * height} x '
                f'{part.divisor * width} pixels, by more than {TOLERANCE:g}; the model '
                f'is not kept'
            )
    worst = max(found, key=lambda each: each.difference)
    if not part.detects:
        return worst
    return replace(worst, detections=sum(each.detections or 0 for each in found))


def check_decoding(part: Part, model: nn.Module) -> None:
    """See that the boxes of a part are those that MMDetection's own heads predict.

    Args:
        part (Part): 'boxes' of a detector.
        model (nn.Module): The detector.

    Raises:
        ValueError: If they are not.
        RuntimeError: If MMDetection predicts none.
    """
    # late: it declares operators that an older torch does not take
    from .boxes import predicted

    with torch.no_grad():
        # of one unit, the smallest that an exported model takes
        found = _decide(
            compare(part, predicted(model, images, own[1].shape[1]), own)
            for (images,), own in _trials(part, 2, 1, 2)
        )
    if not found.close:
        name = type(model).__name__
        raise ValueError(
            f'the part "boxes" does not know how {name} makes boxes: its own differ '
            f'by {found.difference:.1e}; take "detector" and decode its maps with '
            f'predict_by_feat of the head'
        )
