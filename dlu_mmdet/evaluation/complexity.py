"""Parameters and FLOPs of upsamplers and of detectors built with them.

Two counts that check each other. torch's counter runs a module and adds up the
operators that it has a formula for: convolutions and matrix products without their
bias, 2 FLOPs a multiply-add and padding counted in full, and this package's
operators. It has none for interpolation. The closed forms give every term by name
and per source pixel, so that the counter's figure is exactly the sum of the terms
that it sees, and the figure of the papers the sum of theirs.
"""

from __future__ import annotations

import csv
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..config.read import upsampler_label
from ..necks import UnifiedFPN
from ..ops import library
from ..ops.checks import check_geometry
from ..upsamplers import (
    UPSAMPLERS,
    build_upsampler,
    classes_from_files,
    is_guided,
    resolve_upsampler,
)
from ..utils.plotting import DPI, MARKERS, PALETTE, style
from ..utils.tables import to_markdown
from ..utils.torch_compat import count_flops_of

PAPER = 'arXiv 2410.22139, abstract'
# the ratio and the channels that the paper's claims are for
CLAIMED_SCALE, CLAIMED_CHANNELS = 16, 256
# R50's levels, as in the paper's comparison
NECK_CHANNELS = (256, 512, 1024, 2048)
# megabytes that four upsamplers add to the neck, as DLU's authors give them
PUBLISHED_SIZES = dict(carafe=1.2, dlu=0.6)


# ---- any module ----------------------------------------------------------------


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def _run_counted(
    module: nn.Module, *inputs: object, **kwargs: object
) -> FlopCounterMode:
    with torch.no_grad(), count_flops_of(module) as counter:
        module(*inputs, **kwargs)
    return counter


def count_flops(module: nn.Module, *inputs: Tensor) -> int | None:
    """FLOPs of one forward pass, by torch's counter.

    Counts 2 for each multiply-add of convolutions, matrix products and this
    package's operators. Bias, normalization, activations and interpolation count 0,
    and so does every operator of mmcv (RoIAlign, NMS): they have no formula.

    Args:
        module (nn.Module): Any.
        *inputs (Tensor): Arguments of its ``forward``, on its device.

    Returns:
        int | None: FLOPs of all inputs together; None where the extension is not
        built for the device, for the plain PyTorch operators that stand in are made
        of calls that the counter knows nothing of.
    """
    if not library.is_available(inputs[0].device.type):
        return None
    return _run_counted(module, *inputs).get_total_flops()


# ---- a whole detector ----------------------------------------------------------


def find_upsamplers(model: nn.Module) -> dict[str, nn.Module]:
    """The upsamplers in a model, wherever they are.

    Args:
        model (nn.Module): A detector or a part of one.

    Returns:
        dict[str, nn.Module]: By qualified name, the entries of every
        ``upsample_modules`` and instances of classes that are registered or in a file
        of the user; of nested ones the outermost.
    """
    classes = (*UPSAMPLERS.module_dict.values(), *classes_from_files())
    registered = tuple(filter(inspect.isclass, classes))
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        path = name.split('.')
        if any('.'.join(path[:i]) in found for i in range(1, len(path))):
            continue
        if isinstance(module, registered) or path[-2:-1] == ['upsample_modules']:
            found[name] = module
    return found


def input_channels(detector: nn.Module) -> int:
    """Channels of the images that a detector of mmdet takes: 1 if gray, else 3."""
    mean = getattr(detector.data_preprocessor, 'mean', None)
    first = next(m for m in detector.modules() if isinstance(m, nn.Conv2d))
    # one mean may also stand for three channels
    single = mean is None or len(mean) == 1
    return 1 if single and first.in_channels == 1 else 3


def detector_complexity(
    detector: Config | nn.Module, image_shape: tuple[int, int]
) -> dict[str, int | None]:
    """Parameters and FLOPs of a detector, and its upsamplers' share.

    FLOPs are those of one image of noise, as :func:`count_flops` counts them: those
    of mmcv's operators, RoIAlign and NMS among them, are 0. The heads of a two-stage
    detector run on the proposals of its first stage, whose number depends on the
    weights where it stays under ``max_per_img``; a detector built here gets the same
    weights every time.

    Args:
        detector (Config | nn.Module): A config with ``model``, or a detector of
            mmdet, which is left in the mode that it was in.
        image_shape (tuple[int, int]): Height and width in pixels; the detector's
            preprocessor pads the image as its config says.

    Returns:
        dict[str, int | None]: ``parameters``, ``flops``, ``upsampler_parameters``
        and ``upsampler_flops``; FLOPs are None where the extension is not built for
        the device.

    Raises:
        ValueError: If a side of the image is below 1.
    """
    height, width = image_shape
    if min(height, width) < 1:
        raise ValueError(
            f'image_shape must be (height, width), each at least 1, got {image_shape}'
        )
    if isinstance(detector, Config):
        init_default_scope(detector.get('default_scope', 'mmdet'))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            detector = MODELS.build(deepcopy(detector.model))
    upsamplers = find_upsamplers(detector)
    result = dict(
        parameters=count_parameters(detector),
        flops=None,
        upsampler_parameters=count_parameters(nn.ModuleList(upsamplers.values())),
        upsampler_flops=None,
    )

    training = detector.training
    detector.eval()
    data = demo_mm_inputs(1, [(input_channels(detector), height, width)])
    data = detector.data_preprocessor(data, False)
    if library.is_available(data['inputs'].device.type):
        counter = _run_counted(detector, **data, mode='tensor')
        counts = counter.get_flop_counts()
        root = type(detector).__name__  # how the counter names modules
        result['flops'] = counter.get_total_flops()
        result['upsampler_flops'] = sum(
            sum(counts.get(f'{root}.{name}', {}).values()) for name in upsamplers
        )
    detector.train(training)
    return result


# ---- closed forms --------------------------------------------------------------

TERMS = (
    'compress',
    'kernels',
    'offsets',
    'gate',
    'convolution',
    'reassembly',
    'sampling',
    'interpolation',
    'similarity',
    'attention',
    'bias',
)
# what torch's counter has no formula for
UNSEEN = ('interpolation', 'similarity', 'attention', 'bias')


def _carafe(m: nn.Module, c: int) -> dict[str, int]:
    cm, taps = m.compressed_channels, m.scale_factor**2 * m.up_kernel**2
    return dict(
        compress=2 * c * cm,
        kernels=2 * m.encoder_kernel**2 * cm * m.up_group * taps,
        reassembly=2 * taps * c,
        bias=2 * (cm + m.up_group * taps),
    )


def _dlu(m: nn.Module, c: int) -> dict[str, int]:
    cm, taps = m.compressed_channels, m.scale_factor**2 * m.up_kernel**2
    kernels = m.up_group * m.up_kernel**2
    offsets = m.up_group * 2 * m.scale_factor**2
    return dict(
        compress=2 * c * cm,
        kernels=2 * m.encoder_kernel**2 * cm * kernels,
        offsets=2 * m.encoder_kernel**2 * cm * offsets,
        reassembly=2 * taps * c,
        sampling=8 * m.up_group * taps,
        bias=2 * (cm + kernels + offsets),
    )


def _dysample(m: nn.Module, c: int) -> dict[str, int]:
    pixels = m.scale_factor**2
    offsets, layers = 2 * m.groups * pixels, 2 if m.dyscope else 1
    read = c if m.style == 'lp' else c // pixels
    return dict(
        offsets=2 * layers * read * offsets,
        interpolation=8 * pixels * c,  # F.grid_sample
        bias=2 * offsets,
    )


def _fade(m: nn.Module, c: int) -> dict[str, int]:
    cm, taps, pixels = m.compressed_channels, m.up_kernel**2, m.scale_factor**2
    read = 1 if m.lite else cm
    return dict(
        compress=2 * (c + pixels * m.guide_channels) * cm,
        # the features' share at source resolution, the guide's at output resolution
        kernels=2 * (1 + pixels) * m.encoder_kernel**2 * read * taps,
        gate=2 * c * m.gating,
        reassembly=2 * pixels * taps * c,
        bias=2 * (pixels * cm + (1 + pixels) * taps + m.gating),
    )


def _sapa(m: nn.Module, c: int) -> dict[str, int]:
    d, pixels, gated = m.embedding_channels, m.scale_factor**2, m.form == 'G'
    taps = pixels * m.up_kernel**2
    return dict(
        compress=2 * (c + pixels * m.guide_channels + gated * c) * d,
        kernels=2 * taps * d,  # the similarities
        gate=2 * c * gated,
        reassembly=2 * taps * c,
        bias=2 * ((1 + pixels + gated) * d + gated),
    )


def _freqfusion(m: nn.Module, c: int) -> dict[str, int]:
    cm, pixels = m.compressed_channels, m.scale_factor**2
    low, high, area = m.up_kernel**2, m.highpass_kernel**2, m.encoder_kernel**2
    offsets = 2 * m.groups * pixels  # from either map
    return dict(
        compress=2 * (1 + pixels) * c * cm,
        kernels=2 * (1 + pixels) * area * cm * (low + high),
        offsets=2 * 4 * area * (cm + 8) * offsets,
        # filtered: the kernels' logits, the features; the compressed guide, the guide
        reassembly=2 * pixels * (low * (low + high + c) + high * (cm + c)),
        interpolation=8 * pixels * c,  # F.grid_sample
        similarity=2 * 8 * (1 + pixels) * cm,
        bias=2 * ((1 + pixels) * (cm + low + high) + 4 * offsets),
    )


def _deconv(m: nn.Module, c: int) -> dict[str, int]:
    (k, _), (s, _) = m.kernel_size, m.stride
    return dict(convolution=2 * k**2 * c**2, bias=2 * s**2 * c)


def _pixel_shuffle(m: nn.Module, c: int) -> dict[str, int]:
    outputs = m.scale_factor**2 * c
    return dict(convolution=2 * m.upsample_kernel**2 * c * outputs, bias=2 * outputs)


def _lda_aqu(m: nn.Module, c: int) -> dict[str, int]:
    d, pixels, taps = m.compressed_channels, m.scale_factor**2, m.up_kernel**2
    outputs = 2 * taps * pixels
    return dict(
        compress=2 * 2 * c * d,
        offsets=2 * d * (9 * pixels + m.encoder_kernel**2 * outputs),
        # the queries; keys and features at every tap
        interpolation=8 * pixels * (d + taps * (d + c)),  # F.grid_sample
        attention=2 * pixels * taps * (d + c),
        bias=2 * m.groups * outputs,
    )


def _resize_conv(m: nn.Module, c: int) -> dict[str, int]:
    pixels = m.scale_factor**2
    weights = (9 + c) * c if m.depthwise else 9 * c**2
    return dict(
        convolution=2 * pixels * weights,
        interpolation=8 * pixels * c * (m.mode == 'bilinear'),
        bias=2 * pixels * c,
    )


def _nearest(m: nn.Module, c: int) -> dict[str, int]:
    return {}  # copies


def _bilinear(m: nn.Module, c: int) -> dict[str, int]:
    return dict(interpolation=8 * int(m.scale_factor) ** 2 * c)


#: Terms of FLOPs per source pixel, from a built upsampler and its channels: 2 a
#: multiply-add, a bias counted as one of them, which is how the CARAFE paper (arXiv
#: 1905.02188) counts; a value interpolated bilinearly takes 4, wherever it is sampled.
#: Softmax, sigmoid, normalization, the sums of a gate and coordinates are left out, as
#: there. A guide is s*s pixels a source pixel. Keys are names in ``UPSAMPLERS``; one
#: that is missing here has torch's counter alone.
CLOSED_FORMS: dict[str, Callable[[nn.Module, int], dict[str, int]]] = dict(
    carafe=_carafe,
    dlu=_dlu,
    dysample=_dysample,
    fade=_fade,
    sapa=_sapa,
    freqfusion=_freqfusion,
    deconv=_deconv,
    pixel_shuffle=_pixel_shuffle,
    resize_conv=_resize_conv,
    lda_aqu=_lda_aqu,
    nearest=_nearest,
    bilinear=_bilinear,
)


# ---- the comparison of upsamplers ----------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one upsampler takes at one ratio; FLOPs are per source pixel.

    Attributes:
        name (str): In ``UPSAMPLERS``.
        scale (int): Upsampling ratio s.
        channels (int): C.
        parameters (int): Of the built module.
        counted (float | None): FLOPs by torch's counter, see :func:`count_flops`.
        terms (dict[str, int] | None): FLOPs of each of ``TERMS`` by the closed
            form; None where there is none.
    """

    name: str
    scale: int
    channels: int
    parameters: int
    counted: float | None
    terms: dict[str, int] | None

    def _sum(self, *left_out: str) -> int | None:
        if self.terms is None:
            return None
        return sum(v for term, v in self.terms.items() if term not in left_out)

    @property
    def seen(self) -> int | None:
        """Closed form of what torch's counter counts: none of ``UNSEEN``."""
        return self._sum(*UNSEEN)

    @property
    def without_sampling(self) -> int | None:
        """Closed form as the papers count: with bias, without sampling of kernels."""
        return self._sum('sampling')

    @property
    def total(self) -> int | None:
        """Closed form of every term."""
        return self._sum()


def measure(
    scales: Sequence[int] = (2, 4, 8, 16),
    channels: int = 256,
    names: Iterable[str] | None = None,
    more: Iterable[dict] = (),
) -> list[Row]:
    """Count parameters and FLOPs of upsamplers with their default arguments.

    The modules are built and run on fake tensors: nothing of their size is
    allocated. A guide has as many channels as the features.

    Args:
        scales (Sequence[int]): Upsampling ratios, each at least 1.
        channels (int): C, at least 1.
        names (Iterable[str], optional): Names in ``UPSAMPLERS``. Defaults to all.
        more (Iterable[dict]): Other upsamplers, each as
            :func:`dlu_mmdet.upsamplers.resolve_upsampler` takes it.

    Returns:
        list[Row]: By ratio, then by number of parameters.

    Raises:
        FileNotFoundError: If the file of an upsampler does not exist.
        TypeError: If a size is not an int, or an upsampler is no class of modules.
        ValueError: If a size is out of range, or an upsampler is unknown.
    """
    names = sorted(UPSAMPLERS.module_dict if names is None else names)
    cfgs = {name: dict(type=name) for name in names}
    cfgs.update((upsampler_label(cfg), resolve_upsampler(cfg)) for cfg in more)
    side = 16  # FLOPs per pixel are the same on any map that upsamplers take
    rows = []
    for scale in scales:
        check_geometry(channels, 1, 1, scale)
        for name, cfg in cfgs.items():
            with FakeTensorMode():
                module = build_upsampler(cfg, channels, scale, guide_channels=channels)
                inputs = [torch.empty(1, channels, side, side)]
                if is_guided(module):
                    inputs.append(inputs[0].new_empty(1, channels, *[side * scale] * 2))
                flops = count_flops(module, *inputs)
            terms = None
            if name in CLOSED_FORMS and cfg['type'] == name:
                terms = dict.fromkeys(TERMS, 0) | CLOSED_FORMS[name](module, channels)
            rows.append(
                Row(
                    name,
                    scale,
                    channels,
                    count_parameters(module),
                    None if flops is None else flops / side**2,
                    terms,
                )
            )
    return sorted(rows, key=lambda row: (row.scale, row.parameters))


def neck_sizes(channels: int = 256) -> dict[str, int]:
    """What four upsamplers add to a ``UnifiedFPN`` of five levels.

    Args:
        channels (int): Of every level of the pyramid.

    Returns:
        dict[str, int]: Bytes in float32, by name of the upsampler.
    """
    sizes = {}
    for name in sorted(UPSAMPLERS.module_dict):
        with FakeTensorMode():
            neck = UnifiedFPN(
                list(NECK_CHANNELS), channels, 5, upsample_cfg=dict(type=name)
            )
        sizes[name] = sum(p.nbytes for p in neck.upsample_modules.parameters())
    return sizes


# ---- tables --------------------------------------------------------------------


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:,.0f}'


def _change(value: float | None, base: float | None) -> str:
    return f'{100 * (value / base - 1):+.1f} %' if value is not None and base else '-'


def _fewer(value: float | None, base: float | None) -> str:
    return f'{100 * (1 - value / base):.1f} %' if value is not None and base else '-'


def complexity_table(rows: Sequence[Row]) -> str:
    """Parameters and FLOPs per source pixel beside CARAFE's, as Markdown."""
    carafe = {row.scale: row for row in rows if row.name == 'carafe'}
    head = ['upsampler', 'ratio', 'params', 'to CARAFE', "FLOPs/px, torch's counter"]
    head += ['closed form', 'to CARAFE', 'with sampling', 'to CARAFE']
    body = []
    for row in rows:
        cells = [row.name, str(row.scale)]
        for quantity in ('parameters', 'counted', 'without_sampling', 'total'):
            value = getattr(row, quantity)
            cells.append(_number(value))
            if quantity != 'counted':
                base = getattr(carafe.get(row.scale), quantity, None)
                cells.append(_change(value, base))
        body.append(cells)
    return to_markdown(head, body)


def terms_table(rows: Sequence[Row]) -> str:
    """The closed forms term by term beside torch's counter, as Markdown."""
    seen = [term for term in TERMS if term not in UNSEEN]
    head = ['upsampler', 'ratio', *seen, 'sum', "torch's counter", *UNSEEN]
    body = [
        [
            row.name,
            str(row.scale),
            *(_number(row.terms[term]) for term in seen),
            _number(row.seen),
            _number(row.counted),
            *(_number(row.terms[term]) for term in UNSEEN),
        ]
        for row in rows
        if row.terms is not None
    ]
    return to_markdown(head, body)


def claims_table() -> str:
    """The two claims of DLU's abstract beside what comes out here, as Markdown."""
    measured = measure([CLAIMED_SCALE], CLAIMED_CHANNELS, ('carafe', 'dlu'))
    rows = {row.name: row for row in measured}
    dlu, carafe = rows['dlu'], rows['carafe']
    body = [
        ['parameters', _fewer(dlu.parameters, carafe.parameters), '91 %'],
        [
            'FLOPs, sampling of the kernels left out',
            _fewer(dlu.without_sampling, carafe.without_sampling),
            'at least 63 %',
        ],
        [
            'FLOPs, sampling of the kernels included',
            _fewer(dlu.total, carafe.total),
            '-',
        ],
        [
            "FLOPs by torch's counter, sampling included",
            _fewer(dlu.counted, carafe.counted),
            '-',
        ],
    ]
    head = [
        f'DLU has fewer than CARAFE at a ratio of {CLAIMED_SCALE}, '
        f'C {CLAIMED_CHANNELS}',
        'here',
        f'published ({PAPER})',
    ]
    return to_markdown(head, body)


def neck_table(channels: int = 256) -> str:
    """Size of four upsamplers in the neck, measured and published, as Markdown."""
    body = [
        [
            name,
            f'{size * 1e-6:.2f} MB',
            f'{PUBLISHED_SIZES[name]} MB'
            if name in PUBLISHED_SIZES and channels == CLAIMED_CHANNELS
            else '-',
        ]
        for name, size in sorted(neck_sizes(channels).items(), key=lambda i: i[1])
    ]
    head = [
        f'four upsamplers in UnifiedFPN, C {channels}, float32',
        'here',
        "published by DLU's authors",
    ]
    return to_markdown(head, body)


def report(rows: Sequence[Row]) -> str:
    """All tables with what their columns mean, as Markdown.

    Args:
        rows (Sequence[Row]): What :func:`measure` returned.

    Returns:
        str: Markdown.
    """
    channels = rows[0].channels
    missing = '' if rows[0].counted is not None else _NO_COUNTER
    return f"""\
# Parameters and FLOPs of the upsamplers, C {channels}

FLOPs are per source pixel, 2 a multiply-add. The closed form counts as the CARAFE
paper does, bias included, and leaves out the sampling of DLU's kernels; the column
after it adds the sampling.
{missing}
{complexity_table(rows)}

## The closed form, term by term

torch's counter counts neither interpolation, similarity (of a pixel to its
neighbors), attention nor bias; the sum of the other terms is its figure.

{terms_table(rows)}

## The paper's claims

{claims_table()}

## Added model size

{neck_table(channels)}
"""


_NO_COUNTER = """
torch's counter is left out: the extension is not built, and the plain PyTorch
operators that stand in for it are made of calls that the counter does not know.
"""


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write the rows, every term in a column of its own; empty where unknown."""
    head = ['upsampler', 'scale', 'channels', 'parameters', 'flops_torch', *TERMS]
    head += ['flops_without_sampling', 'flops_total']
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            terms = row.terms or dict.fromkeys(TERMS)
            counted = None if row.counted is None else f'{row.counted:.12g}'
            writer.writerow(
                [row.name, row.scale, row.channels, row.parameters, counted]
                + [terms[term] for term in TERMS]
                + [row.without_sampling, row.total]
            )


# ---- plot ----------------------------------------------------------------------


@style()
def plot(rows: Sequence[Row], path: str | Path) -> None:
    """Draw parameters and FLOPs against the ratio, one line per upsampler.

    FLOPs are those of every term of the closed form, or torch's counter's where
    there is none. What is 0 has no place on a logarithmic axis and is named below.

    Args:
        rows (Sequence[Row]): What :func:`measure` returned.
        path (str | Path): Image file to write.
    """
    names = sorted({row.name for row in rows})
    scales = sorted({row.scale for row in rows})
    panels = (
        ('parameters', lambda row: row.parameters),
        (
            'FLOPs per source pixel, bias and sampling included',
            lambda row: row.counted if row.total is None else row.total,
        ),
    )
    figure = Figure(figsize=(11, 4.6), dpi=DPI, layout='constrained')
    figure.suptitle(f'Cost of one upsampler of {rows[0].channels} channels')
    for axis, (title, value_of) in zip(figure.subplots(1, len(panels)), panels):
        axis.set_xscale('log', base=2)
        axis.set_yscale('log')
        ends, absent = {}, []
        for i, name in enumerate(names):
            color = PALETTE[i % len(PALETTE)]
            points = {r.scale: value_of(r) for r in rows if r.name == name}
            points = {scale: v for scale, v in sorted(points.items()) if v}
            if not points:
                absent.append(name)
                continue
            ends[name] = list(points.values())[-1], color
            axis.plot(
                points.keys(),
                points.values(),
                color=color,
                marker=MARKERS[i % len(MARKERS)],
            )
        _label_ends(axis, ends)
        axis.xaxis.set_major_locator(FixedLocator(scales))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axis.set_xlabel('upsampling ratio')
        axis.set_title(title)
        if absent:
            axis.text(
                0.98,
                0.03,
                f'0: {", ".join(absent)}',
                transform=axis.transAxes,
                ha='right',
                color='0.35',
            )
    figure.savefig(path)


def _label_ends(axis: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Write each line's name beside its end, moved where two would overlap.

    Args:
        axis (Axes): Logarithmic, with the lines.
        ends (dict[str, tuple[float, str]]): Last value and color of each line.
    """
    low, high = (math.log(limit) for limit in axis.get_ylim())
    names = sorted(ends, key=lambda name: ends[name][0])
    steps = 0.055 * np.arange(len(names))
    heights = np.array([math.log(ends[name][0]) for name in names])
    # without the steps, names that do not overlap are in ascending order
    heights = (heights - low) / (high - low) - steps
    up = np.maximum.accumulate(heights)
    down = np.minimum.accumulate(heights[::-1])[::-1]
    for name, height in zip(names, (up + down) / 2 + steps):
        axis.text(
            1.01,
            height,
            name,
            transform=axis.transAxes,
            va='center',
            color=ends[name][1],
        )
