"""Record the maps of a feature pyramid for an image, and draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from .figures import map_colors, new_figure
from .images import as_rgb

_COLOR_MAP = 'viridis'
#: What a picture must keep, for :func:`dlu_mmdet.visualization.figures.save_figure`.
KEPT_COLORS = map_colors(_COLOR_MAP)
# all in inches
_FIGURE_WIDTH = 10.0
_MAX_PANEL_WIDTH = 2.2
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.1, 0.1, 0.34, 0.1
_GAP = 0.08
_MAX_ASPECT = 1.4


@dataclass(frozen=True)
class Upsampling:
    """One call of an upsampler.

    Attributes:
        module (nn.Module): The upsampler.
        source (Tensor): (1, C, H, W), its input.
        output (Tensor): (1, C, s*H, s*W), its output.
        guide (Tensor, optional): (1, C', h, w), the guide of a guided upsampler.
    """

    module: nn.Module
    source: Tensor
    output: Tensor
    guide: Tensor | None = None


@dataclass(frozen=True)
class Recording:
    """The feature pyramid of one image and the upsampler calls behind it.

    Attributes:
        image (np.ndarray): (h, w, 3) uint8, RGB: the image as the network
            takes it, resized, before normalization and padding.
        padded (tuple[int, int]): Height and width in pixels after padding.
        levels (dict[str, Tensor]): The neck's outputs (1, C, H, W) by name:
            P2 has a quarter of the image's resolution, P3 an eighth, ...
        upsamplings (dict[str, list[Upsampling]]): Upsampler calls by the level that
            they upsample to, in the order of the neck's forward.
    """

    image: np.ndarray
    padded: tuple[int, int]
    levels: dict[str, Tensor] = field(default_factory=dict)
    upsamplings: dict[str, list[Upsampling]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether all outputs are finite; a picture needs it."""
        return all(level.isfinite().all() for level in self.levels.values())

    def cropped(self, level: str) -> Tensor:
        """A level's map (C, H, W) without the padding of the image."""
        maps = self.levels[level][0]
        h, w = (
            math.ceil(size * cells / whole)
            for size, cells, whole in zip(self.image.shape, maps.shape[1:], self.padded)
        )
        return maps[:, :h, :w]


@torch.no_grad()
def record(model: nn.Module, data: dict) -> Recording:
    """Run a detector on one image and record its neck.

    Upsamplers are those of the ``upsample_modules`` of any part of the neck.

    Args:
        model (nn.Module): A detector, in eval mode.
        data (dict): ``inputs``, a tensor (C, h, w) of gray or BGR, and
            ``data_samples``: an item of a data set, or of
            :func:`dlu_mmdet.visualization.images.load_image`.

    Returns:
        Recording: On the detector's device, in float32.

    Raises:
        ValueError: If the detector has no neck that returns several maps.
    """
    neck = getattr(model, 'neck', None)
    if neck is None:
        raise ValueError(
            f'{type(model).__name__} has no neck; features and kernels are those of '
            'a detector with a feature pyramid'
        )
    batch = model.data_preprocessor(
        dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
    )
    image = as_rgb(data['inputs'].detach().cpu().numpy().transpose(1, 2, 0))
    recording = Recording(image, tuple(batch['inputs'].shape[2:]))

    def keep_upsampling(module: nn.Module, args: tuple, output: Tensor) -> None:
        name = _level_name(output, recording.padded)
        source, *guide = (maps.float() for maps in args)
        upsampling = Upsampling(module, source, output.float(), *guide)
        recording.upsamplings.setdefault(name, []).append(upsampling)

    with ExitStack() as hooks:
        for part in neck.modules():
            for module in getattr(part, 'upsample_modules', ()):
                handle = module.register_forward_hook(keep_upsampling)
                hooks.callback(handle.remove)
        outputs = model.extract_feat(batch['inputs'])
    if isinstance(outputs, Tensor) or not all(
        isinstance(output, Tensor) and output.dim() == 4 for output in outputs
    ):
        raise ValueError(
            f"{type(neck).__name__}'s output is no list of maps (N, C, H, W); "
            'features are those of a feature pyramid'
        )
    for output in outputs:
        recording.levels[_level_name(output, recording.padded)] = output.float()
    return recording


def _level_name(output: Tensor, padded: tuple[int, int]) -> str:
    """P2 at a quarter of the image's resolution, P3 at an eighth, ..."""
    return f'P{round(math.log2(padded[1] / output.shape[3]))}'


def draw_features(recordings: Mapping[str, Recording], image_name: str = '') -> Figure:
    """Draw the maps P2..P5 of several detectors, on one color scale.

    A row is a level, a column a detector. Colors show the root mean square of the
    channels. The scale ends at the highest 99.5th percentile of all maps, so that a few
    extreme positions do not darken the rest.

    Args:
        recordings (Mapping[str, Recording]): What :func:`record` returned, by
            the detectors' names, all of one image.
        image_name (str): Written under the image.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`.

    Raises:
        ValueError: If there is no recording, or none has a level of P2..P5.
    """
    if not recordings:
        raise ValueError('recordings must hold at least one detector, got none')
    strengths = {
        name: {
            level: recording.cropped(level).square().mean(0).sqrt().cpu().numpy()
            for level in recording.levels
            if level in ('P2', 'P3', 'P4', 'P5')
        }
        for name, recording in recordings.items()
    }
    levels = sorted({level for maps in strengths.values() for level in maps})
    if not levels:
        raise ValueError(
            'the necks of '
            + ', '.join(recordings)
            + ' give no level of P2 to P5 (a quarter to a 32nd of the resolution)'
        )
    # by map: among all positions those of P5 are few enough to count as extreme
    top = max(
        float(np.percentile(values, 99.5))
        for maps in strengths.values()
        for values in maps.values()
    )

    image = next(iter(recordings.values())).image
    h, w = image.shape[:2]
    columns = 1 + len(strengths)
    width = (_FIGURE_WIDTH - _LEFT - _RIGHT) / columns - _GAP
    width = min(width, _MAX_PANEL_WIDTH)
    height = width * min(h / w, _MAX_ASPECT)
    figure_width = _LEFT + _RIGHT + columns * (width + _GAP)
    # the color bar is in the second row
    figure_height = _TOP + _BOTTOM + max(len(levels), 2) * (height + _GAP)
    # and has its words below
    figure_height = max(figure_height, _TOP + height + 1.1)
    figure = new_figure(figure_width, figure_height)

    def panel(row: int, column: int) -> Axes:
        axes = figure.add_axes(
            (
                (_LEFT + column * (width + _GAP)) / figure_width,
                1 - (_TOP + row * (height + _GAP) + height) / figure_height,
                width / figure_width,
                height / figure_height,
            ),
            xticks=[],
            yticks=[],
        )
        axes.spines[:].set_visible(False)
        return axes

    axes = panel(0, 0)
    axes.imshow(image, extent=(0, w, h, 0))
    axes.set_title(image_name or 'image', fontsize=11, fontweight='bold', pad=5)
    drawn = None
    for column, (name, maps) in enumerate(strengths.items(), 1):
        for row, level in enumerate(levels):
            axes = panel(row, column)
            if row == 0:
                axes.set_title(name, fontsize=11, fontweight='bold', pad=5)
            if level not in maps:
                axes.text(0.5, 0.5, 'none', ha='center', transform=axes.transAxes)
                continue
            recording, values = recordings[name], maps[level]
            cell = recording.padded[1] / recording.levels[level].shape[3]
            rows, cells = values.shape
            drawn = axes.imshow(
                values,
                cmap=_COLOR_MAP,
                vmin=0,
                vmax=top,
                extent=(0, cells * cell, rows * cell, 0),
                interpolation='nearest',
            )
            # the last cells may reach into the padding
            axes.set(xlim=(0, recording.image.shape[1]))
            axes.set(ylim=(recording.image.shape[0], 0))
            axes.text(
                0.03,
                0.97,
                f'{level}  {cells} × {rows}',
                transform=axes.transAxes,
                va='top',
                fontsize=7.5,
                color='white',
                bbox=dict(boxstyle='square,pad=0.2', facecolor='black', alpha=0.6),
            )
    bar = figure.add_axes(
        (
            (_LEFT + 0.1 * width) / figure_width,
            1 - (_TOP + height + 0.35) / figure_height,
            0.8 * width / figure_width,
            0.12 / figure_height,
        )
    )
    color_bar = figure.colorbar(drawn, cax=bar, orientation='horizontal', extend='max')
    color_bar.ax.tick_params(labelsize=7)
    color_bar.set_label(
        'root mean square\nof the channels,\none scale for all', fontsize=8
    )
    return figure
