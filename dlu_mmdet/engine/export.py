"""A detector without MMDetection: its tensors in, its tensors out, as ONNX."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..torch_compat import EXPORTS
from .files import replacing

PARTS = ('detector', 'neck', 'boxes')
#: What :func:`export_onnx` takes beside torch; the extra ``export`` brings them.
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
# heads over a whole pyramid, by the names that mmdet's detectors have for them
_HEADS = ('rpn_head', 'bbox_head', 'mask_head')
_DETECTIONS = ('boxes', 'scores', 'labels')
# height and width that a part is tried at, in units of the divisor
_TRIED = (2, 3)
# batch, height and width that it is traced at
_TRACED = (2, 2, 3)


@dataclass(frozen=True)
class Part:
    """What is traced of a detector, and how.

    Attributes:
        module (nn.Module): Its forward takes one tuple of tensors and returns a tuple.
        inputs (dict[str, tuple[int, int]]): By name, the channels and how many pixels
            there are in each unit of height and width.
        outputs (list[str]): Names of what it returns.
        divisor (int): Pixels of the image in a unit.
    """

    module: nn.Module
    inputs: Mapping[str, tuple[int, int]]
    outputs: Sequence[str]
    divisor: int

    def make(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Random inputs for images of so many units of the divisor."""
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randn(batch, c, n * height, n * width, generator=generator)
            for c, n in self.inputs.values()
        )

    def shapes(self) -> tuple:
        """The dimensions that stay open, for ``torch.export``."""
        batch, height, width = map(torch.export.Dim, ('batch', 'height', 'width'))
        return (
            tuple(
                {
                    0: batch,
                    2: n * height if n > 1 else height,
                    3: n * width if n > 1 else width,
                }
                for _, n in self.inputs.values()
            ),
        )


class _Tied(nn.Module):
    """A module whose inputs have sizes in one unit.

    An export knows the size of each input by a name of its own. Expanded to multiples
    of the same two, it is known of every later size what it is a multiple of.
    """

    def __init__(self, module: nn.Module, pixels: Sequence[int]) -> None:
        super().__init__()
        self.module = module
        self.pixels = tuple(pixels)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        coarsest, least = inputs[-1], self.pixels[-1]
        batch, _, *sizes = coarsest.shape
        height, width = (size // least for size in sizes)
        tied = []
        for x, n in zip(inputs, self.pixels):
            # the comparison lets an export put one name for the other
            if any(least * m != n * size for m, size in zip(x.shape[2:], sizes)):
                raise ValueError(
                    f'a map of {tuple(x.shape[2:])} beside one of {tuple(sizes)}: the '
                    f'sides must be as {n} to {least}'
                )
            tied.append(x.expand(batch, x.shape[1], n * height, n * width))
        return self.module(tuple(tied))


class _Neck(nn.Module):
    """Maps of the backbone to those of the pyramid."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.neck = model.neck

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.neck(inputs))


class _Detector(nn.Module):
    """An image to what the head over the pyramid gives.

    A two-stage detector gives the pyramid too, which its second stage reads.
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, inputs: tuple[Tensor]) -> tuple[Tensor, ...]:
        pyramid = self.model.extract_feat(inputs[0])
        out = getattr(self.model, self.head)(pyramid)
        return tuple(_flat([pyramid, out] if _two_stage(self.model) else out))


def _two_stage(model: nn.Module) -> bool:
    return hasattr(model, 'roi_head')


def _flat(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _flat(inner)


def check_packages() -> None:
    """See that there is what :func:`export_onnx` needs.

    Raises:
        ValueError: If a package is missing, or torch is too old.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f'{", ".join(missing)} must be installed to export to ONNX: pip install '
            f"{' '.join(missing)}, or dlu_mmdet with its extra, '.[export]'"
        )
    if not EXPORTS:
        raise ValueError(
            f'torch is {torch.__version__}; the export to ONNX needs 2.7 or later'
        )


def check_out(out: str | os.PathLike) -> None:
    """See before the work that a model can be written.

    Raises:
        ValueError: If the file's name does not end in .onnx.
        FileNotFoundError: If its folder does not exist.
    """
    if Path(out).suffix != '.onnx':
        raise ValueError(f'--out must end with .onnx, got {out}')
    if not Path(out).parent.is_dir():
        raise FileNotFoundError(
            f'--out {out}: the folder {Path(out).parent} does not exist; make it first'
        )


def choose_part(model: nn.Module, part: str, divisor: int | None = None) -> Part:
    """Take the part of a detector that is tensors alone.

    Args:
        model (nn.Module): In eval mode, with ``cfg``, as
            :func:`~dlu_mmdet.engine.load_detector` gives it.
        part (str): 'neck', maps of the backbone to maps of the pyramid;
            'detector', an image, normalised and padded as the detector's
            ``data_preprocessor`` does it, to the head's maps; or 'boxes', the same
            image to its detections.
        divisor (int, optional): Pixels of which height and width are multiples.
            Defaults to None, the ``pad_size_divisor`` of the ``data_preprocessor``,
            32 at least.

    Returns:
        Part: With the names of its tensors: ``image``, ``features.0`` (the finest) and
        on, ``pyramid.0`` and on, those of the head, which are the arguments of its
        ``predict_by_feat``: ``cls_scores.0`` and on; or ``boxes``, ``scores`` and
        ``labels``, see :class:`~dlu_mmdet.engine.export_boxes.Boxes`.

    Raises:
        ValueError: If the detector has no such part, or if its maps are no whole parts
            of the divisor.
    """
    if part not in PARTS:
        raise ValueError(f'part must be one of {", ".join(PARTS)}, got {part!r}')
    if divisor is None:
        divisor = max(32, getattr(model.data_preprocessor, 'pad_size_divisor', 1))
    if divisor < 1:
        raise ValueError(f'divisor must be at least 1, got {divisor}')
    name = type(model).__name__
    if part == 'neck':
        if getattr(model, 'neck', None) is None:
            raise ValueError(
                f'{name} has no neck, so there is no part "neck"; take "detector"'
            )
        features = _run(model.backbone, _image(divisor), 'backbone')
        inputs = {
            f'features.{i}': (x.shape[1], _pixels(x, i, divisor))
            for i, x in enumerate(features)
        }
        module = _Neck(model)
        pyramid = _run(module, features, part)
        outputs = [f'pyramid.{i}' for i in range(len(pyramid))]
        pixels = [n for _, n in inputs.values()]
        return Part(_Tied(module, pixels).eval(), inputs, outputs, divisor)
    if part == 'boxes':
        # late: it declares operators that an older torch does not take
        from .export_boxes import Boxes, check_boxes

        check_boxes(model)
        module = _Tied(Boxes(model), [divisor]).eval()
        return Part(module, {'image': (3, divisor)}, _DETECTIONS, divisor)
    head = next((h for h in _HEADS if getattr(model, h, None) is not None), None)
    if head is None:
        raise ValueError(
            f'{name} has none of {", ".join(_HEADS)}, whose maps are what is exported; '
            'take the part "neck"'
        )
    module = _Tied(_Detector(model, head), [divisor]).eval()
    with torch.no_grad():
        pyramid = model.extract_feat(_image(divisor))
    maps = _run(getattr(model, head), pyramid, head)
    outputs = [f'pyramid.{i}' for i in range(len(pyramid))] if _two_stage(model) else []
    outputs += _names_of(getattr(model, head), maps)
    return Part(module, {'image': (3, divisor)}, outputs, divisor)


def _image(divisor: int) -> Tensor:
    height, width = _TRIED
    return torch.zeros(1, 3, height * divisor, width * divisor)


def _run(module: nn.Module, inputs: object, name: str) -> object:
    """A module's outputs, or why there are none."""
    try:
        with torch.no_grad():
            return module(inputs)
    except Exception as error:  # whatever a module says to maps alone
        raise ValueError(
            f'{name}, a {type(module).__name__}, cannot be exported: it does not run '
            f'on tensors alone ({_reason(error)})'
        ) from error


def _pixels(x: Tensor, level: int, divisor: int) -> int:
    """How many pixels of a map there are in a unit of the image."""
    height, width = _TRIED
    pixels = x.shape[2] // height
    if not pixels or x.shape[2:] != (pixels * height, pixels * width):
        raise ValueError(
            f'level {level} of the backbone is {x.shape[2]} x {x.shape[3]} for an '
            f'image of {height * divisor} x {width * divisor}: no whole parts of '
            f'{divisor} pixels; use --divisor {2 * divisor}'
        )
    return pixels


def _names_of(head: nn.Module, out: Sequence) -> list[str]:
    """Names for a head's outputs: the arguments of what decodes them."""
    decode = getattr(head, 'predict_by_feat', None)
    known = list(inspect.signature(decode).parameters) if decode else []
    names = []
    for i, value in enumerate(out if isinstance(out, (list, tuple)) else [out]):
        name = known[i] if i < len(known) else f'output_{i}'
        names += [f'{name}.{level}' for level, _ in enumerate(_flat(value))]
    return names


def trace(part: Part) -> torch.export.ExportedProgram:
    """Trace a part, with batch, height and width open.

    Args:
        part (Part): From :func:`choose_part`.

    Returns:
        torch.export.ExportedProgram: What ``torch.export.save`` writes; it runs
        without this package.

    Raises:
        ValueError: If it cannot be traced; says which module cannot, and why.
    """
    try:
        with torch.no_grad():
            return torch.export.export(
                part.module,
                (part.make(*_TRACED),),
                dynamic_shapes=part.shapes(),
                strict=False,
            )
    except Exception as error:  # tracing runs whatever the model holds
        raise ValueError(
            f'{_culprit(part.module, error)} cannot be traced for an export: '
            f'{_reason(error)}'
        ) from error


def _culprit(module: nn.Module, error: BaseException) -> str:
    """The innermost module that was at work when an error rose."""
    names = {inner: name for name, inner in module.named_modules()}
    found, frame = module, error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get('self')
        if isinstance(owner, nn.Module) and owner in names:
            found = owner
        frame = frame.tb_next
    name = names[found].removeprefix('module').removeprefix('.').removeprefix('model.')
    return f'{name}, a {type(found).__name__},' if name else 'the part'


def _reason(error: BaseException) -> str:
    # torch.export says in the second line what it means by the first
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines[:2])}'


def export_onnx(
    part: Part, out: str | os.PathLike, metadata: Mapping[str, object] | None = None
) -> None:
    """Write a part as an ONNX model of standard operators.

    Batch, height and width stay open. The file is whole or not there at all.

    Args:
        part (Part): From :func:`choose_part`.
        out (str | PathLike): The .onnx file.
        metadata (Mapping, optional): Kept in the model, as JSON each.

    Raises:
        ValueError: If the part cannot be traced or ONNX lacks an operator.
        FileNotFoundError: If the folder of ``out`` does not exist.
    """
    check_packages()
    check_out(out)
    program = trace(part)
    # it tells of packages that are not needed
    registration = logging.getLogger('torch.onnx._internal.exporter._registration')
    try:
        registration.disabled = True
        with warnings.catch_warnings():
            # about the names of open dimensions that several inputs share
            warnings.simplefilter('ignore')
            model = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=part.shapes(),
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                custom_translation_table=_translations(part),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = _reason(error.__cause__ or error)
        raise ValueError(f'the model cannot be written as ONNX: {reason}') from error
    finally:
        registration.disabled = False
    custom = sorted({n.op_type for n in model.model.graph.all_nodes() if n.domain})
    if custom:
        raise ValueError(
            f'the model cannot be written as ONNX: {", ".join(custom)} are no '
            'operators of its standard'
        )
    kept = dict(metadata or {}, size_divisor=part.divisor)
    texts = {k: json.dumps(v, allow_nan=False) for k, v in kept.items()}
    model.model.metadata_props.update(texts)
    with replacing(out) as partial:
        model.save(partial, external_data=False)


def _translations(part: Part) -> dict | None:
    if part.outputs is not _DETECTIONS:
        return None
    from .export_boxes import translations

    return translations()


def describe(model: nn.Module) -> dict[str, object]:
    """What a user of an exported detector has to know to feed it and to read it.

    Args:
        model (nn.Module): As :func:`choose_part`.

    Returns:
        dict: ``mean``, ``std`` and order of ``channels`` of the
        ``data_preprocessor``, and the ``classes``; what it lacks is left out.
    """
    given = model.data_preprocessor
    found = {
        name: getattr(given, name).flatten().tolist()
        for name in ('mean', 'std')
        if hasattr(given, name)
    }
    # images are loaded as BGR, and mmengine keeps whether it swaps that
    swaps = getattr(given, '_channel_conversion', False)
    found['channels'] = 'RGB' if swaps else 'BGR'
    found['classes'] = list(model.dataset_meta['classes'])
    return found
