"""Time and memory of the reassembly operators beside what they replace.

Every contender runs once a round and medians are taken over rounds, so that a
busy machine slows all of them alike: read the ratios. On a GPU a run is a burst of
calls, so that the time to launch one hides behind those before; what fits into its
cache then stays there. The operators' part of this module needs torch alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from dlu_mmdet.ops import library, reference
from dlu_mmdet.utils.tables import escape
from dlu_mmdet.utils.timing import capture, interleaved, peak_memory

# source maps of an FPN's three upsamplings, for an image of 800 x 1344
SIZES = ((25, 42), (50, 84), (100, 168))
CHANNELS, KERNEL, SCALE = 256, 5, 2
COMPOSED = (
    'dlu, reference',
    'dlu, unfold + einsum',
    'dlu, grid_sample + reference',
)
UNFOLDED_LIMIT = 1 << 30  # bytes; larger unfolded maps are left out


def parse_size(text: str) -> tuple[int, int]:
    """Read the size of a map or an image from a command line.

    Args:
        text (str): HEIGHTxWIDTH in pixels, as '50x84'.

    Returns:
        tuple[int, int]: Height and width.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    try:
        height, width = map(int, text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'a size is HEIGHTxWIDTH as 50x84, got {text!r}'
        ) from None
    return height, width


@dataclass(frozen=True)
class Contender:
    """One way to upsample.

    Attributes:
        name (str): As printed.
        run (Callable): Maps ``inputs`` to the upsampled features.
        inputs (tuple[Tensor, ...]): What is read, the features first.
        flops (int): Of a forward, 2 a multiply-add; 0 where it is not the point.
    """

    name: str
    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    flops: int


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        batch (int): Images.
        size (tuple[int, int]): Height and width of the source map.
        direction (str): 'forward' or 'forward + backward'.
        name (str): Contender.
        milliseconds (float): Median over rounds.
        ratio (float): Of it to that of bilinear interpolation.
        least (float): Least of the rounds, in milliseconds.
        least_ratio (float): Of it to that of bilinear interpolation.
        extra (float): Memory beyond what is returned, as a fraction of it: of the
            output for a forward, of the gradients for the backward.
        gflops (float): GFLOP a second at the least time, 0 where not counted.
        bandwidth (float): Bytes read and written once, by the forward and once more
            by the backward, per second at the least time, as a fraction of the
            bandwidth of a copy.
        replay (float, optional): Median of replays as a CUDA graph, in milliseconds:
            without the time to dispatch. None without a GPU, or if capture failed.
    """

    batch: int
    size: tuple[int, int]
    direction: str
    name: str
    milliseconds: float
    ratio: float
    least: float
    least_ratio: float
    extra: float
    gflops: float
    bandwidth: float
    replay: float | None


def sample_kernels(kernels: Tensor, offsets: Tensor, scale_factor: int) -> Tensor:
    """Every output pixel's kernel, by grid_sample, for one group.

    Args:
        kernels (Tensor): (N, K*K, H, W).
        offsets (Tensor): (N, 2*s*s, H, W) in source pixels.
        scale_factor (int): s.

    Returns:
        Tensor: (N, K*K, s*H, s*W), what CARAFE calls masks.
    """
    n, _, h, w = kernels.shape
    s = scale_factor
    dx, dy = offsets.reshape(n, 2, s, s, h, w).permute(1, 0, 4, 2, 5, 3)
    xs = torch.arange(w, device=kernels.device).reshape(w, 1)
    ys = torch.arange(h, device=kernels.device).reshape(h, 1, 1, 1)
    grid = torch.stack(
        [(xs + dx) * 2 / (w - 1) - 1, (ys + dy) * 2 / (h - 1) - 1], dim=-1
    ).reshape(n, h * s, w * s, 2)
    return F.grid_sample(
        kernels, grid, mode='bilinear', padding_mode='border', align_corners=True
    )


def unfold_dlu(
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    kernel_size: int,
    scale_factor: int,
) -> Tensor:
    """DLU of one group from grid_sample, unfold and einsum.

    Args:
        features (Tensor): (N, C, H, W).
        kernels (Tensor): (N, K*K, H, W).
        offsets (Tensor): (N, 2*s*s, H, W) in source pixels.
        kernel_size (int): K.
        scale_factor (int): s.

    Returns:
        Tensor: (N, C, s*H, s*W).
    """
    n, c, h, w = features.shape
    s, k = scale_factor, kernel_size
    sampled = sample_kernels(kernels, offsets, s)
    sampled = sampled.reshape(n, k * k, h, s, w, s)
    unfolded = F.unfold(features, k, padding=k // 2).reshape(n, c, k * k, h, w)
    out = torch.einsum('nthiwj,ncthw->nchiwj', sampled, unfolded)
    return out.reshape(n, c, h * s, w * s)


def backends(device_type: str) -> dict[str, ModuleType]:
    """The operators of a device that are not plain PyTorch, by the backend's name."""
    if not library.is_available(device_type):
        return {}
    return {library.gpu_backend() if device_type == 'cuda' else 'fused': library}


def mmcv_carafe() -> Callable[..., Tensor] | None:
    """mmcv's CARAFE, which has no CPU version; None where it is missing."""
    try:
        from mmcv.ops import carafe
    except ImportError:
        from mmcv_carafe import load

        return load()
    return carafe


def contenders(
    batch: int,
    size: tuple[int, int],
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Contender]:
    """What is compared at one size, with C 256, K 5, s 2 and one group.

    Args:
        batch (int): N.
        size (tuple[int, int]): H and W of the source map.
        device (str): Where.
        dtype (torch.dtype): Of every tensor.
        memory_format (torch.memory_format): Of every tensor.

    Returns:
        list[Contender]: Bilinear interpolation first.
    """
    (h, w), c, k, s = size, CHANNELS, KERNEL, SCALE
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=generator)
        return value.to(device, dtype, memory_format=memory_format)

    x = make(batch, c, h, w)
    kernels = make(batch, k * k, h, w).softmax(1)
    masks = make(batch, k * k, s * h, s * w).softmax(1)
    offsets = make(batch, 2 * s * s, h, w)
    grid = F.affine_grid(
        torch.eye(2, 3).expand(batch, 2, 3), [batch, c, s * h, s * w], False
    ).to(device, dtype)
    flops = 2 * s * s * k * k * c * h * w * batch
    sampling = 8 * s * s * k * k * h * w * batch
    sizes = (k, 1, s)
    dlu_inputs, dlu_flops = (x, kernels, offsets), flops + sampling
    listed = [
        Contender(
            'bilinear',
            lambda x: F.interpolate(
                x, scale_factor=s, mode='bilinear', align_corners=False
            ),
            (x,),
            0,
        ),
        Contender('nearest', lambda x: F.interpolate(x, scale_factor=s), (x,), 0),
        Contender(
            'grid_sample',
            lambda x, grid: F.grid_sample(x, grid, align_corners=False),
            (x, grid),
            0,
        ),
    ]
    for name, ops in backends(x.device.type).items():
        listed += [
            Contender(
                f'dlu, {name}',
                lambda *t, ops=ops: ops.dlu(*t, *sizes),
                dlu_inputs,
                dlu_flops,
            ),
            Contender(
                f'carafe, {name}',
                lambda *t, ops=ops: ops.carafe(*t, *sizes),
                (x, masks),
                flops,
            ),
        ]
    # in bfloat16 mmcv has none
    theirs = mmcv_carafe() if x.is_cuda and dtype != torch.bfloat16 else None
    if theirs is not None:
        listed += [
            Contender('carafe, mmcv', lambda *t: theirs(*t, *sizes), (x, masks), flops),
            Contender(
                'dlu, grid_sample + mmcv carafe',
                lambda x, k, o: theirs(x, sample_kernels(k, o, s), *sizes),
                dlu_inputs,
                dlu_flops,
            ),
        ]
    listed += [
        Contender(
            COMPOSED[0], lambda *t: reference.dlu(*t, *sizes), dlu_inputs, dlu_flops
        ),
        Contender(
            COMPOSED[2],
            lambda x, k, o: reference.carafe(x, sample_kernels(k, o, s), *sizes),
            dlu_inputs,
            dlu_flops,
        ),
    ]
    if x.nbytes * k * k <= UNFOLDED_LIMIT:
        listed.append(
            Contender(
                COMPOSED[1], lambda *t: unfold_dlu(*t, k, s), dlu_inputs, dlu_flops
            )
        )
    return listed


def _replays(
    actions: Sequence[Callable[[], object]], rounds: int, device: torch.device
) -> list[float | None]:
    """Milliseconds of each action as a graph, None where there is none."""
    if device.type != 'cuda':
        return [None] * len(actions)
    times: list[float | None] = []
    for action in actions:
        try:
            # one at a time: a graph keeps its memory
            graph, _ = capture(action)
            ((median, _),) = interleaved([graph.replay], rounds, device)
            times.append(median * 1e3)
        except RuntimeError:
            times.append(None)
    return times


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes a second, read and written, of copying 256 MiB to touched memory."""
    source = torch.ones(64 << 20, device=device)
    target = torch.zeros_like(source)
    ((_, least),) = interleaved([lambda: target.copy_(source)], rounds, device)
    return 2 * source.nbytes / least


def _differentiate(contender: Contender) -> tuple[Callable, Callable]:
    """Forward + backward, and the backward alone of a kept graph."""
    inputs = [t.detach().requires_grad_() for t in contender.inputs]
    out = contender.run(*inputs)
    grad = torch.ones_like(out)

    def both():
        return torch.autograd.grad(contender.run(*inputs), inputs, grad)

    def backward():
        return torch.autograd.grad(out, inputs, grad, retain_graph=True)

    return both, backward


def measure(
    batch: int,
    size: tuple[int, int],
    rounds: int = 15,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    bandwidth: float = 0.0,
    composed: bool = True,
    ours: bool = False,
) -> list[Row]:
    """Measure every contender at one size, forward and forward + backward.

    Args:
        batch (int): Images.
        size (tuple[int, int]): Height and width of the source map.
        rounds (int): Runs of each contender; one of those that take over 5 s.
        device (str): Where.
        dtype (torch.dtype): Of every tensor.
        memory_format (torch.memory_format): Of every tensor.
        bandwidth (float): Bytes a second of a copy; measured if 0.
        composed (bool): Whether to run what is composed of PyTorch calls too,
            which is slow.
        ours (bool): Whether to run nothing but bilinear and the operators of this
            package.

    Returns:
        list[Row]: By direction, then by contender.
    """
    where = torch.device(device)
    bandwidth = bandwidth or copy_bandwidth(where, rounds)
    listed = contenders(
        batch, size, device=device, dtype=dtype, memory_format=memory_format
    )
    if not composed:
        listed = [c for c in listed if c.name not in COMPOSED]
    if ours:
        names = {
            f'{op}, {name}' for op in ('dlu', 'carafe') for name in backends(where.type)
        }
        listed = [c for c in listed if c.name in {'bilinear', *names}]
    rows = []

    def add(direction, actions, peaks, returned, moved, times):
        """A row a contender; ``returned`` and ``moved`` are bytes."""
        replays = _replays(actions, rounds, where)
        seconds = interleaved(actions, rounds, where)
        for index, (contender, taken) in enumerate(zip(listed, seconds)):
            rows.append(
                Row(
                    batch,
                    size,
                    direction,
                    contender.name,
                    *_times(taken, seconds[0]),
                    peaks[index] / returned[index] - 1,
                    times * contender.flops / taken[1] * 1e-9,
                    moved[index] / taken[1] / bandwidth,
                    replays[index],
                )
            )

    read = [sum(t.nbytes for t in c.inputs) for c in listed]
    outputs = [c.inputs[0].nbytes * SCALE**2 for c in listed]
    with torch.no_grad():
        actions = [lambda c=c: c.run(*c.inputs) for c in listed]
        peaks = [peak_memory(action, where) for action in actions]
        moved = [a + b for a, b in zip(read, outputs)]
        add('forward', actions, peaks, outputs, moved, 1)
    pairs = [_differentiate(contender) for contender in listed]
    peaks = [peak_memory(backward, where) for _, backward in pairs]
    # inputs are read twice
    moved = [3 * a + 2 * b for a, b in zip(read, outputs)]
    add('forward + backward', [both for both, _ in pairs], peaks, read, moved, 3)
    return rows


def _times(taken: tuple[float, float], base: tuple[float, float]) -> tuple:
    (median, least), (base_median, base_least) = taken, base
    return (median * 1e3, median / base_median, least * 1e3, least / base_least)


def _registered(first: str) -> list[str]:
    """Names of all upsamplers, one of them first."""
    # the operators' part of this module runs without mmdet
    from dlu_mmdet.upsamplers import UPSAMPLERS

    return [first, *sorted(UPSAMPLERS.module_dict.keys() - {first})]


def measure_upsamplers(
    size: tuple[int, int], rounds: int = 15, device: str = 'cpu'
) -> str:
    """Time every registered upsampler as a whole, with its default arguments.

    C 256, s 2, batch 1, float32; a guide has as many channels. Memory is what is
    held at most, of a forward its output included, of a training step besides the
    inputs and parameters.

    Args:
        size (tuple[int, int]): Height and width of the source map.
        rounds (int): Runs of each, interleaved.
        device (str): Where.

    Returns:
        str: A Markdown table; ratios are of the least times.
    """
    from dlu_mmdet.upsamplers import build_upsampler, is_guided

    where, (h, w) = torch.device(device), size
    generator = torch.Generator().manual_seed(0)
    x, guide = (
        torch.randn(1, CHANNELS, s * h, s * w, generator=generator).to(where)
        for s in (1, SCALE)
    )
    names = _registered('bilinear')
    inferences, steps = [], []
    for name in names:
        module = build_upsampler(
            dict(type=name), CHANNELS, SCALE, guide_channels=CHANNELS
        ).to(where)
        inputs = [x, guide] if is_guided(module) else [x]
        leaves = [t.clone().requires_grad_() for t in inputs]
        read = [*leaves, *module.parameters()]
        grad = torch.ones_like(guide)

        def inference(module=module, inputs=inputs):
            with torch.no_grad():
                return module(*inputs)

        def step(module=module, leaves=leaves, read=read, grad=grad):
            return torch.autograd.grad(module(*leaves), read, grad, allow_unused=True)

        inferences.append(inference)
        steps.append(step)
    columns = []
    for actions in (inferences, steps):
        peaks = [peak_memory(action, where) for action in actions]
        columns.append(list(zip(interleaved(actions, rounds, where), peaks)))
    lines = [
        f'| upsampler, {h} x {w} | forward, median ms | least | to {names[0]} | MB | '
        f'forward + backward, median ms | least | to {names[0]} | MB |',
        '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    for name, *found in zip(names, *columns):
        cells = [escape(name)]
        for (taken, peak), (base, _) in zip(found, (c[0] for c in columns)):
            median, _, least, ratio = _times(taken, base)
            cells += [f'{median:.1f}', f'{least:.1f}', f'{ratio:.2f}']
            cells.append(f'{peak * 1e-6:.1f}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def measure_neck(rounds: int = 15, device: str = 'cpu') -> str:
    """Time a whole UnifiedFPN of R50 widths at 800 x 1344, inference, batch 1.

    Args:
        rounds (int): Runs with each upsampler, interleaved.
        device (str): Where.

    Returns:
        str: A Markdown table; ratios are to nearest.
    """
    # the operators' part of this module runs without mmdet
    from dlu_mmdet.necks import UnifiedFPN

    where = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    widths = (256, 512, 1024, 2048)
    inputs = tuple(
        torch.randn(1, width, 200 >> level, 336 >> level, generator=generator).to(where)
        for level, width in enumerate(widths)
    )
    names = _registered('nearest')
    necks = [
        UnifiedFPN(list(widths), 256, 5, upsample_cfg=dict(type=name)).to(where).eval()
        for name in names
    ]
    with torch.no_grad():
        times = interleaved(
            [lambda neck=neck: neck(inputs) for neck in necks], rounds, where
        )
    return _named_table('UnifiedFPN, 800 x 1344', names, times)


def measure_training(config: str, rounds: int = 15) -> str:
    """Time training iterations of a detector with each upsampler, on the CPU.

    Args:
        config (str): Config of the detector; 8 images of random pixels with six
            objects each stand in for its data.
        rounds (int): Iterations with each upsampler, interleaved.

    Returns:
        str: A Markdown table; ratios are to bilinear.
    """
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    # init_weights would list every parameter
    MMLogger.get_current_instance().setLevel('WARNING')
    names = ('bilinear', 'carafe', 'dlu')

    def iteration(name: str) -> Callable[[], None]:
        cfg = Config.fromfile(config)
        cfg.model.neck.upsample_cfg = dict(type=name)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.train()
        classes = cfg.model.roi_head.bbox_head.num_classes
        sizes = [(3, 192, 192)] * 8
        data = demo_mm_inputs(8, sizes, num_items=[6] * 8, num_classes=classes)
        data = model.data_preprocessor(data, True)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

        def step() -> None:
            total, _ = model.parse_losses(model(**data, mode='loss'))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

        return step

    times = interleaved(
        [iteration(name) for name in names], rounds, torch.device('cpu')
    )
    return _named_table('training iteration', names, times)


def _named_table(
    title: str, names: Sequence[str], times: Sequence[tuple[float, float]]
) -> str:
    """A Markdown table of times, ratios to the first."""
    lines = [
        f'| {title} | median ms | to {names[0]} | least ms | to {names[0]} |',
        '|---|--:|--:|--:|--:|',
    ]
    for name, taken in zip(names, times):
        median, ratio, least, least_ratio = _times(taken, times[0])
        lines.append(
            f'| {escape(name)} | {median:.0f} | {ratio:.3f} | {least:.0f} | '
            f'{least_ratio:.3f} |'
        )
    return '\n'.join(lines)


HEADER = (
    '| batch | source map | direction | upsampler | median ms | to bilinear | '
    'least ms | to bilinear | extra memory | GFLOP/s | of copy bandwidth | graph ms |\n'
    '|--:|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|'
)


def to_milliseconds(value: float) -> str:
    """A time for a table; a kernel takes a few microseconds."""
    return f'{value:.3f}' if value < 1 else f'{value:.2f}'


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as lines of a table under ``HEADER``."""
    lines = []
    for row in rows:
        gflops = f'{row.gflops:.1f}' if row.gflops else ''
        replay = '' if row.replay is None else to_milliseconds(row.replay)
        lines.append(
            f'| {row.batch} | {row.size[0]} x {row.size[1]} | {row.direction} | '
            f'{escape(row.name)} | {to_milliseconds(row.milliseconds)} | '
            f'{row.ratio:.2f} | {to_milliseconds(row.least)} | '
            f'{row.least_ratio:.2f} | {row.extra:.1%} | '
            f'{gflops} | {row.bandwidth:.0%} | {replay} |'
        )
    return '\n'.join(lines)


def plot(rows: Sequence[Row], path: str, title: str) -> None:
    """Draw the times of batch 1 as bars, on a logarithmic axis.

    Args:
        rows (Sequence[Row]): What :func:`measure` returned, for several sizes.
        path (str): PNG file to write.
        title (str): Over the drawing.
    """
    from matplotlib.figure import Figure

    from dlu_mmdet.utils import plotting

    batch = min(row.batch for row in rows)
    rows = [row for row in rows if row.batch == batch]
    directions = list(dict.fromkeys(row.direction for row in rows))
    sizes = list(dict.fromkeys(row.size for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    with plotting.style():
        figure = Figure((10, 4.6), dpi=plotting.DPI, layout='constrained')
        axes = figure.subplots(1, len(directions), sharey=True, squeeze=False)
        for axis, direction in zip(axes[0], directions):
            for index, name in enumerate(names):
                found = {
                    row.size: row.milliseconds
                    for row in rows
                    if (row.name, row.direction) == (name, direction)
                }
                width = 0.8 / len(names)
                places = [
                    sizes.index(size) + (index - len(names) / 2) * width
                    for size in found
                ]
                axis.bar(places, list(found.values()), width, label=name, align='edge')
            axis.set_xticks(range(len(sizes)), [f'{h} x {w}' for h, w in sizes])
            axis.set_xlabel('source map, height x width')
            axis.set_title(direction)
            axis.set_yscale('log')
            axis.grid(False, axis='x')
        axes[0][0].set_ylabel('milliseconds, median')
        bars = axes[0][0].get_legend_handles_labels()[0]
        plotting.legend_below(figure, bars, columns=6)
        figure.suptitle(f'Time of one upsampling, batch {batch}: {title}')
        figure.savefig(path)
