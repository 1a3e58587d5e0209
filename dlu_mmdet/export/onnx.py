"""A detector without MMDetection: its tensors in, its tensors out, as ONNX."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..utils.files import atomic_write
from ..utils.torch_compat import EXPORTS
from .heads import (
    FEATURES,
    Call,
    find_calls,
    flat,
    larger_divisor,
    names_of,
    reason_of,
    without,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from .verify import Agreement

PARTS = ('detector', 'neck', 'boxes')
#: What :func:`export_onnx` takes beside torch; the extra ``export`` brings them.
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
#: The lowest version of ONNX's operators that torch's exporter writes.
LOWEST_OPSET = 18
_DETECTIONS = ('boxes', 'scores', 'labels')
# height and width that a part is tried at, in units of the divisor
_TRIED = (2, 3)
# batch, height and width that it is traced at, or multiples of the last two
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
        left_out (list[str]): Modules of the detector whose weights it does not hold.
        threshold (float): Of boxes, the score below which there are none.
        traced (tuple[int, int, int]): Batch, height and width that it is traced at, in
            units.
    """

    module: nn.Module
    inputs: Mapping[str, tuple[int, int]]
    outputs: Sequence[str]
    divisor: int
    left_out: Sequence[str] = ()
    threshold: float = 0.0
    traced: tuple[int, int, int] = _TRACED

    @property
    def detects(self) -> bool:
        """Whether its outputs are boxes, scores and labels."""
        return tuple(self.outputs) == _DETECTIONS

    def make(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Random inputs for images of so many units of the divisor."""
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randn(batch, c, n * height, n * width, generator=generator)
            for c, n in self.inputs.values()
        )

    def shapes(self) -> tuple:
        """The dimensions that stay open, for ``torch.export``."""
        # what is traced there need not hold below; an ONNX model has no such bound
        least = self.traced[1:] if self.traced != _TRACED else (None, None)
        batch = torch.export.Dim('batch')
        height, width = (
            torch.export.Dim(name, min=size)
            for name, size in zip(('height', 'width'), least)
        )
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
    of the same two, the exporter knows how all later sizes relate.
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
    """An image to what the heads make of its pyramid.

    A two-stage detector gives the pyramid too, which its second stage reads.
    """

    def __init__(self, model: nn.Module, calls: Sequence[Call]) -> None:
        super().__init__()
        self.model = model
        self.calls = calls

    def forward(self, inputs: tuple[Tensor]) -> tuple[Tensor, ...]:
        pyramid = self.model.extract_feat(inputs[0])
        outs = [call.run(self.model, pyramid) for call in self.calls]
        return tuple(flat([pyramid, *outs] if _two_stage(self.model) else outs))


def _two_stage(model: nn.Module) -> bool:
    return hasattr(model, 'roi_head')


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


def check_opset(opset: int) -> None:
    """See that an opset can be asked for.

    Raises:
        ValueError: If it is below :data:`LOWEST_OPSET`, or later than the installed
            onnx.
    """
    import onnx

    highest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= highest:
        raise ValueError(
            f'opset must be from {LOWEST_OPSET} to {highest}, the latest of onnx '
            f'{onnx.__version__}, got {opset}'
        )


def choose_part(model: nn.Module, part: str, divisor: int | None = None) -> Part:
    """Take the part of a detector that is tensors alone.

    Args:
        model (nn.Module): In eval mode, with ``cfg``, as
            :func:`~dlu_mmdet.engine.load_detector` gives it.
        part (str): 'neck', maps of the backbone to maps of the pyramid;
            'detector', an image, normalized and padded as the detector's
            ``data_preprocessor`` does it, to the head's maps; or 'boxes', the same
            image to its detections.
        divisor (int, optional): Pixels of which height and width are multiples.
            Defaults to None, the ``pad_size_divisor`` of the ``data_preprocessor``,
            32 at least.

    Returns:
        Part: With the names of its tensors: ``image``, ``features.0`` (the finest) and
        on, ``pyramid.0`` and on, those of the head, which are the arguments of its
        ``predict_by_feat``: ``cls_scores.0`` and on; or ``boxes``, ``scores`` and
        ``labels``, see :class:`~dlu_mmdet.export.boxes.Boxes`.

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
    choose = dict(neck=_choose_neck, detector=_choose_detector, boxes=_choose_boxes)
    return choose[part](model, divisor)


def _choose_neck(model: nn.Module, divisor: int) -> Part:
    if getattr(model, 'neck', None) is None:
        raise ValueError(
            f'{type(model).__name__} has no neck, so there is no part "neck"; take '
            f'"detector"'
        )
    features = _run(model.backbone, _image(divisor), 'backbone')
    inputs = {
        f'features.{i}': (x.shape[1], _pixels(x, i, divisor))
        for i, x in enumerate(features)
    }
    pyramid = _run(model.neck, features, 'neck')
    outputs = [f'pyramid.{i}' for i in range(len(pyramid))]
    module = _Tied(_Neck(model), [n for _, n in inputs.values()]).eval()
    part = Part(module, inputs, outputs, divisor)
    return replace(part, traced=_traced(lambda h, w: module(part.make(1, h, w))))


def _choose_detector(model: nn.Module, divisor: int) -> Part:
    pyramid, calls = find_calls(model, divisor)
    outputs = [f'pyramid.{i}' for i in range(len(pyramid))] if _two_stage(model) else []
    outputs += names_of(model, pyramid, calls)
    module = _Tied(_Detector(model, calls), [divisor]).eval()
    return Part(
        module,
        {'image': (3, divisor)},
        outputs,
        divisor,
        left_out=list(without(model, {*FEATURES, *(call.name for call in calls)})),
        traced=_traced(_pyramids(model, divisor)),
    )


def _choose_boxes(model: nn.Module, divisor: int) -> Part:
    # late: it declares operators that an older torch does not take
    from .boxes import Boxes, check_boxes
    from .verify import check_decoding

    check_boxes(model)
    head = model.roi_head if _two_stage(model) else model.bbox_head
    heads = ('rpn_head', 'bbox_head', 'roi_head.bbox_head', 'roi_head.shared_head')
    part = Part(
        _Tied(Boxes(model), [divisor]).eval(),
        {'image': (3, divisor)},
        _DETECTIONS,
        divisor,
        left_out=list(without(model, {*FEATURES, *heads})),
        threshold=float(head.test_cfg.get('score_thr', 0)),
        traced=_traced(_pyramids(model, divisor)),
    )
    try:
        check_decoding(part, model)
    except ValueError:
        raise
    except Exception as error:  # whatever a detector says to an image alone
        raise ValueError(
            f'{type(model).__name__} predicts no boxes in images of {divisor} x '
            f'{2 * divisor} pixels ({reason_of(error)})'
            f'{larger_divisor(model, divisor, error)}'
        ) from error
    return part


def _pyramids(model: nn.Module, divisor: int) -> Callable:
    """A detector's pyramid, of images of so many units."""
    return lambda height, width: model.extract_feat(
        torch.zeros(1, 3, height * divisor, width * divisor)
    )


def _traced(run: Callable[[int, int], Sequence[Tensor]]) -> tuple[int, int, int]:
    """Sizes to trace at: an export takes a map of one pixel for one of fixed size."""
    batch, height, width = _TRACED
    for times in (1, 2, 4, 8, 16):
        with torch.no_grad():
            maps = run(times * height, times * width)
        if min(min(x.shape[2:]) for x in maps) > 1:
            break
    return batch, times * height, times * width


def _image(divisor: int) -> Tensor:
    height, width = _TRIED
    return torch.zeros(1, 3, height * divisor, width * divisor)


def _run(module: nn.Module, inputs: object, name: str) -> Any:
    """A module's outputs, or why there are none."""
    try:
        with torch.no_grad():
            return module(inputs)
    except Exception as error:  # whatever a module says to maps alone
        hint = '; try a larger --divisor' if isinstance(error, RuntimeError) else ''
        raise ValueError(
            f'{name}, a {type(module).__name__}, cannot be exported: it does not run '
            f'on tensors alone ({reason_of(error)}){hint}'
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
        with torch.no_grad(), patch.multiple(torch, **_TRACEABLE):
            return torch.export.export(
                part.module,
                (part.make(*part.traced),),
                dynamic_shapes=part.shapes(),
                strict=False,
            )
    except Exception as error:  # tracing runs whatever the model holds
        hint = ''
        if 'Constraints violated' in str(error) and torch.__version__ < '2.13':
            hint = '; torch 2.13 traces more models, export with that'
        raise ValueError(
            f'{_culprit(part.module, error)} cannot be traced for an export: '
            f'{reason_of(error)}{hint}'
        ) from error


def _linspace(start: float, end: float, steps: int, **options) -> Tensor:
    """``torch.linspace``, whose number of steps an export takes for a fixed one."""
    index = torch.arange(steps, **options)
    return start + (end - start) * index / index.max().clamp(min=1)


# what mmdet's mask heads make coordinates with, in a form that an export takes
_TRACEABLE: dict[str, Any] = dict(
    linspace=_linspace, meshgrid=partial(torch.meshgrid, indexing='ij')
)


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


def export_onnx(
    part: Part,
    out: str | os.PathLike,
    metadata: Mapping[str, object] | None = None,
    opset: int | None = None,
) -> Agreement:
    """Write a part as an ONNX model of standard operators, and verify it.

    Batch, height and width stay open. The file is kept only if onnxruntime
    reproduces the outputs of PyTorch, see :func:`~dlu_mmdet.export.verify.verify`.

    Args:
        part (Part): From :func:`choose_part`.
        out (str | PathLike): The .onnx file.
        metadata (Mapping, optional): Kept in the model, as JSON each.
        opset (int, optional): Version of the standard's operators. Defaults to None,
            that of torch's exporter.

    Returns:
        Agreement: Of onnxruntime and PyTorch.

    Raises:
        ValueError: If the part cannot be traced, ONNX lacks an operator, it cannot be
            written in that opset, or the model does not give PyTorch's numbers.
        FileNotFoundError: If the folder of ``out`` does not exist.
    """
    # late: it imports this
    from .verify import SIZES, TOLERANCE, verify

    check_packages()
    check_out(out)
    if opset is not None:
        check_opset(opset)
    program = trace(part)
    # they tell of packages that are not needed, and of versions that are checked here
    chatty = [
        logging.getLogger(f'torch.onnx._internal.exporter.{name}')
        for name in ('_registration', '_compat')
    ] + [logging.getLogger('onnxscript')]
    levels = [logger.level for logger in chatty]
    try:
        for logger in chatty:
            logger.setLevel(logging.CRITICAL)
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
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = reason_of(error.__cause__ or error)
        raise ValueError(f'the model cannot be written as ONNX: {reason}') from error
    finally:
        for logger, level in zip(chatty, levels):
            logger.setLevel(level)
    custom = sorted({n.op_type for n in model.model.graph.all_nodes() if n.domain})
    if custom:
        raise ValueError(
            f'the model cannot be written as ONNX: {", ".join(custom)} are no '
            'operators of its standard'
        )
    written = model.model.opset_imports['']
    if opset not in (None, written):
        raise ValueError(
            f'the model cannot be written in opset {opset}, which lacks an operator of '
            f'it; take opset {written}'
        )
    _guard(model.model.graph, part)
    with atomic_write(out) as partial:
        model.save(partial, external_data=False)
        agreement = verify(part, partial)
        kept = dict(
            metadata or {},
            size_divisor=part.divisor,
            left_out=list(part.left_out),
            verified=dict(
                difference=agreement.difference,
                tolerance=TOLERANCE,
                detections=agreement.detections,
                units=SIZES,
            ),
        )
        texts = {k: json.dumps(v, allow_nan=False) for k, v in kept.items()}
        model.model.metadata_props.update(texts)
        model.save(partial, external_data=False)
    return agreement


def guard_name(part: Part) -> str:
    """The node at which onnxruntime stops for inputs that the model does not take."""
    return f'batch_at_least_1_and_sides_multiples_of_{part.divisor}'


def _guard(graph: ir.Graph, part: Part) -> None:
    """Let a model stop where sizes are not those that it takes, and say so.

    Without it some other node fails, or a model without an upsampler goes on. Every
    input is reshaped to what it should be.
    """
    import onnx_ir as ir

    nodes = []

    def node(op: str, *inputs: object, **attributes: int) -> ir.Value:
        values = []
        for value in inputs:
            if not isinstance(value, ir.Value):
                constant = ir.tensor(value, dtype=ir.DataType.INT64)
                nodes.append(ir.node('Constant', [], dict(value=constant)))
                value = nodes[-1].outputs[0]
            values.append(value)
        nodes.append(ir.node(op, values, attributes))
        return nodes[-1].outputs[0]

    channels, pixels = zip(*part.inputs.values())
    last = graph.inputs[-1]
    units = node('Div', node('Shape', last, start=2), [pixels[-1]])
    batch = node('Max', node('Shape', last, start=0, end=1), [1])
    for value, c, n in zip(list(graph.inputs), channels, pixels):
        used = list(value.uses())
        shape = node('Concat', batch, [c], node('Mul', units, [n]), axis=0)
        # without allowzero 0 stands for the size that the input has
        held = node('Reshape', value, shape, allowzero=1)
        held.shape, held.dtype = value.shape, value.dtype
        nodes[-1].name = f'{guard_name(part)}_{value.name}'
        for user, index in used:
            if user not in nodes:
                user.replace_input_with(index, held)
    graph.insert_before(graph[0], nodes)


def _translations(part: Part) -> dict | None:
    if not part.detects:
        return None
    from .boxes import translations

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
