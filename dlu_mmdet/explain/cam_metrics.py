"""Metrics of maps: energy inside the object, deletion and insertion.

Everything is on the grid of the network's input, of which the image is the upper
left (h, w) and the rest padding. Pixel (y, x) covers [x, x + 1] x [y, y + 1].

- The energy-based pointing game (Score-CAM, arXiv 1910.01279, section 4.3): how much
  of the map is inside the object.
- Deletion and insertion (RISE, arXiv 1806.07421): what becomes of the score while
  pixels are replaced in the order of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

#: Standard deviation of the blur as a share of the image's longer side.
BLUR = 1 / 40


def spread_map(heatmap: Tensor, area: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Interpolate a map bilinearly to the pixels of an image.

    Args:
        heatmap (Tensor): (H, W) float, e.g. of :class:`.cam.Explanation`.
        area (Sequence[float]): x1 y1 x2 y2 of the area that it covers, in pixels.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        Tensor: (h, w), 0 outside the area.
    """
    x1, y1, x2, y2 = area
    x = _centers(size[1], heatmap).sub(x1).div(x2 - x1).mul(2).sub(1)
    y = _centers(size[0], heatmap).sub(y1).div(y2 - y1).mul(2).sub(1)
    grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1)
    spread = F.grid_sample(
        heatmap[None, None], grid[None], padding_mode='border', align_corners=False
    )[0, 0]
    return spread.masked_fill((grid.abs() > 1).any(-1), 0)


def _centers(number: int, like: Tensor) -> Tensor:
    """Centers of pixels along one axis."""
    return torch.arange(number, dtype=like.dtype, device=like.device) + 0.5


def box_coverage(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """The share of each pixel that a box covers.

    Args:
        box (Sequence[float]): x1 y1 x2 y2, in pixels.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        Tensor: (h, w) float32 in [0, 1], on the CPU.
    """
    x1, y1, x2, y2 = map(float, box)

    def along(low: float, high: float, number: int) -> Tensor:
        edges = torch.arange(number + 1.0).clamp(low, max(low, high))
        return edges.diff()

    return along(y1, y2, size[0])[:, None] * along(x1, x2, size[1])


def energy_share(heatmap: Tensor, region: Tensor) -> float:
    """The share of a map's energy inside a region.

    sum(map * region) / sum(map): Score-CAM's energy-based pointing game. A uniform map
    has the region's share of the area.

    Args:
        heatmap (Tensor): (h, w), not negative.
        region (Tensor): (h, w) in [0, 1], how much of each pixel is inside.

    Returns:
        float: In [0, 1]; 0 for a map of zeros.

    Raises:
        ValueError: If the two differ in shape, or the map has negative or
            non-finite values.
    """
    if heatmap.shape != region.shape:
        raise ValueError(
            f'region must have the shape of heatmap, got {tuple(region.shape)} for '
            f'{tuple(heatmap.shape)}'
        )
    if not (heatmap.isfinite() & (heatmap >= 0)).all():
        raise ValueError(
            'heatmap must be finite and not negative, got values from '
            f'{float(heatmap.min()):.3g} to {float(heatmap.max()):.3g}; clamp it at 0'
        )
    heatmap, region = heatmap.double(), region.to(heatmap.device).double()
    return float((heatmap * region).sum() / (heatmap.sum() or 1))


def pixel_ranks(heatmap: Tensor, seed: int = 0) -> Tensor:
    """Rank the pixels by a map, the largest value first.

    Ties, such as the zeros of a map, are ranked in random order.

    Args:
        heatmap (Tensor): (h, w).
        seed (int): Seed of the random order. Defaults to 0.

    Returns:
        Tensor: (h, w) int64 on the map's device, each of 0 .. h w - 1 once.
    """
    values = heatmap.flatten().cpu()
    shuffled = torch.randperm(
        len(values), generator=torch.Generator().manual_seed(seed)
    )
    order = values[shuffled].argsort(descending=True, stable=True)
    ranks = torch.empty_like(shuffled)
    ranks[shuffled[order]] = torch.arange(len(values))
    return ranks.view(heatmap.shape).to(heatmap.device)


def cubic_shares(steps: int) -> Tensor:
    """Shares of the pixels, from none to all, at which a curve is evaluated.

    (t / steps)^3: a small object covers a hundredth of the image, so equal steps would
    skip the change of its score.

    Args:
        steps (int): Number of replacements, at least 2.

    Returns:
        Tensor: (steps + 1,) float64, from 0 to 1.

    Raises:
        ValueError: If there are fewer than 2.
    """
    if steps < 2:
        raise ValueError(f'steps must be at least 2, got {steps}')
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 3


@torch.no_grad()
def replacement_curve(
    score: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    ranks: Tensor,
    shares: Tensor,
    batch_size: int = 32,
) -> Tensor:
    """Scores while the pixels of one image are replaced by those of another.

    Deletion starts with the image and ends with :func:`mean_color`; insertion starts
    with :func:`blurred` and ends with the image.

    Args:
        score (Callable[[Tensor], Tensor]): Scores (N,) of images (N, C, H, W).
        start (Tensor): (1, C, H, W), the image before.
        end (Tensor): (1, C, H, W), the image after.
        ranks (Tensor): (h, w) int, the order, from :func:`pixel_ranks`; at most (H, W):
            what is right of it or below is padding and stays.
        shares (Tensor): (T,) float, shares of the h w pixels that are replaced.
        batch_size (int): How many images to score at once. Defaults to 32.

    Returns:
        Tensor: (T,) float64 on the CPU.

    Raises:
        ValueError: If ``batch_size`` is below 1, shares are not in [0, 1] or do not
            rise, the images differ in shape, or there are no ranks or more than pixels.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    if start.shape != end.shape:
        raise ValueError(
            f'end must have the shape of start, got {tuple(end.shape)} for '
            f'{tuple(start.shape)}'
        )
    if shares.min() < 0 or shares.max() > 1 or (shares.diff() <= 0).any():
        raise ValueError(
            f'shares must rise, from 0 at least to 1 at most, got {shares.tolist()}'
        )
    rows, columns = (n - m for n, m in zip(start.shape[2:], ranks.shape))
    if min(rows, columns) < 0 or not ranks.numel():
        raise ValueError(
            f'ranks must be of one pixel at least and of {tuple(start.shape[2:])} at '
            f'most, got {tuple(ranks.shape)}'
        )
    numbers = (shares * ranks.numel()).round().to(ranks.device)
    scores = []
    for chunk in numbers.split(batch_size):
        replaced = F.pad(ranks < chunk[:, None, None], (0, columns, 0, rows))
        scores.append(score(torch.where(replaced[:, None], end, start)).double().cpu())
    return torch.cat(scores)


def area_under(curve: Tensor, shares: Tensor) -> float:
    """The area under a curve, by the trapezoid rule.

    Args:
        curve (Tensor): (T,) float, from :func:`replacement_curve`.
        shares (Tensor): (T,) float, where it was evaluated.

    Returns:
        float: The mean of the curve if the shares go from 0 to 1.
    """
    return float(torch.trapezoid(curve, shares))


def mean_color(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image filled with its mean color.

    Args:
        image (Tensor): (1, C, H, W).
        size (tuple[int, int]): Height and width of what is not padding.

    Returns:
        Tensor: (1, C, H, W), the padding as it was.
    """
    height, width = size
    result = image.clone()
    part = result[..., :height, :width]
    part[:] = part.mean((2, 3), keepdim=True)
    return result


def blurred(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image blurred by a Gaussian, with :data:`BLUR`.

    Args:
        image (Tensor): (1, C, H, W) float.
        size (tuple[int, int]): Height and width of what is not padding.

    Returns:
        Tensor: (1, C, H, W), the padding as it was.
    """
    height, width = size
    pixels = image[0, :, :height, :width].permute(1, 2, 0).contiguous().cpu().numpy()
    pixels = cv2.GaussianBlur(pixels, (0, 0), BLUR * max(size))
    pixels = torch.from_numpy(pixels).to(image).view(height, width, -1)
    result = image.clone()
    result[0, :, :height, :width] = pixels.permute(2, 0, 1)
    return result
