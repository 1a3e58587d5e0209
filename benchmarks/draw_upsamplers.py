"""Draw every upsampler at work, for docs/upsamplers.md.

Each one is trained to restore feature maps from maps of half their size: random
convolutions of drawn images, before and after average pooling. A guided one also reads
other random convolutions of the same image, as large as what it is to give.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

from dlu_mmdet.datasets.make_shapes import draw_image
from dlu_mmdet.upsamplers import build_upsampler, is_guided, upsampler_class
from dlu_mmdet.utils.plotting import PALETTE
from dlu_mmdet.visualization.features import Upsampling
from dlu_mmdet.visualization.figures import new_figure, save_figure
from dlu_mmdet.visualization.upsampling import map_colors

UPSAMPLERS = {
    'nearest': {},
    'bilinear': {},
    'deconv': {},
    'pixel_shuffle': {},
    'resize_conv': {},
    'carafe': {},
    'dlu': dict(offset_init='subpixel'),
    'dysample': {},
    'lda_aqu': {},
    'fade': {},
    'sapa': {},
    'freqfusion': {},
}
CHANNELS, SIZE = 32, 128
# number of the image that is drawn; source pixels around the one whose reading is shown
SHOWN, CROP = 1_000, 5
# of two output pixels
COLORS = PALETTE[4], PALETTE[0]


def load_image(index: int) -> np.ndarray:
    """Draw an image, (SIZE, SIZE, 3) uint8, RGB; its content depends on its index."""
    return draw_image(7, 0, index, SIZE, 14, 80)[0][..., ::-1].copy()


def make_encoder() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Random convolutions: maps to restore and guides, (N, C, SIZE / 2, SIZE / 2)."""
    conv = nn.Conv2d(3, 2 * CHANNELS, 5, stride=2, padding=2)

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        maps = F.leaky_relu(conv(images - 0.5), 0.2)
        fine, guide = (6 * maps).chunk(2, dim=1)
        return fine, guide

    return encode


def train(
    cfg: dict, encode: Callable, images: Tensor, steps: int
) -> tuple[nn.Module, bool]:
    """Train an upsampler; say whether it is guided."""
    torch.manual_seed(0)
    guided = is_guided(upsampler_class(cfg))
    upsampler = build_upsampler(cfg, CHANNELS, 2, CHANNELS)
    weights = list(upsampler.parameters())
    if weights:
        optimizer = torch.optim.Adam(weights, lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
        for _ in range(steps):
            fine, guide = encode(images[torch.randint(len(images), (4,))])
            inputs = (F.avg_pool2d(fine, 2), guide)[: 1 + guided]
            loss = F.mse_loss(upsampler(*inputs), fine)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return upsampler.eval(), guided


def reading(
    upsampler: nn.Module, inputs: list[Tensor], x: int, y: int, draws: int = 32
) -> Tensor:
    """How much an output pixel depends on each source pixel, (H, W), summing to 1.

    The root mean square of the derivatives of random sums over its channels.
    """
    total = torch.zeros(inputs[0].shape[2:])
    source = inputs[0].detach().requires_grad_()
    pixel = upsampler(source, *inputs[1:])[0, :, y, x]
    for _ in range(draws):
        signs = torch.randn_like(pixel)
        (grad,) = torch.autograd.grad(pixel @ signs, source, retain_graph=True)
        total += grad[0].square().sum(0)
    total = total.sqrt()
    return total / total.sum()


def choose_cell(coarse: Tensor) -> tuple[int, int]:
    """Column and row of the source pixel whose right neighbor differs most."""
    change = coarse.diff(dim=2).abs().sum(0)
    inside = torch.zeros_like(change)
    inside[CROP:-CROP, CROP:-CROP] = change[CROP:-CROP, CROP:-CROP]
    y, x = divmod(int(inside.argmax()), inside.shape[1])
    return x, y


def draw_reading(
    axes: Axes, coarse: np.ndarray, pixels: list, readings: list[Tensor]
) -> None:
    """Part of the coarse map, with circles on what each output pixel reads."""
    axes.imshow(0.4 + 0.6 * coarse, interpolation='nearest')
    for (x, y), share, color in zip(pixels, readings, COLORS):
        rows, columns = torch.nonzero(share > 0.002, as_tuple=True)
        sizes = 900 * share[rows, columns]
        axes.scatter(columns, rows, sizes, color=color, alpha=0.8, linewidths=0)
        place = (x + 0.5) / 2 - 0.5, (y + 0.5) / 2 - 0.5
        axes.plot(*place, 'x', color=color, markersize=11, markeredgewidth=4)
        axes.plot(*place, 'x', color='white', markersize=9, markeredgewidth=1.5)


def main() -> None:
    """Train and draw what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('docs/upsamplers'))
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--names', nargs='+', default=list(UPSAMPLERS))
    args = parser.parse_args()
    torch.manual_seed(0)
    encode = make_encoder()
    images = np.stack([load_image(i) for i in range(64)])
    images = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    image = load_image(SHOWN)
    fine, guide = encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    source = F.avg_pool2d(fine, 2)
    x, y = choose_cell(source[0])
    # one on each side of an edge
    pixels = [(2 * x, 2 * y), (2 * x + 3, 2 * y)]
    for name in args.names:
        cfg = dict(type=name, **UPSAMPLERS[name])
        upsampler, guided = train(cfg, encode, images, args.steps)
        inputs = [source, guide][: 1 + guided]
        with torch.no_grad():
            output = upsampler(*inputs)
        error = (output - fine).square().mean() / fine.var()
        print(f'{name}: {error:.3f} of the variance is not restored')
        coarse, made = map_colors(Upsampling(None, source, output), image, (SIZE, SIZE))
        figure = new_figure(8.1, 3)
        panels = figure.subplots(1, 3)
        figure.subplots_adjust(0.005, 0.005, 0.995, 0.9, wspace=0.02)
        panels[0].imshow(coarse, interpolation='nearest')
        panels[1].imshow(made, interpolation='nearest')
        readings = [reading(upsampler, inputs, *pixel) for pixel in pixels]
        draw_reading(panels[2], coarse, pixels, readings)
        panels[2].set(
            xlim=(x - CROP, x + CROP + 1), ylim=(y + CROP + 0.5, y - CROP - 0.5)
        )
        titles = 'coarse map', name, 'what two output pixels read'
        for axes, title in zip(panels, titles):
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=12)
        save_figure(figure, args.out / f'{name}.png', COLORS, title=name)


if __name__ == '__main__':
    main()
