"""Train a ResNet-50 with a feature pyramid for some seconds with each upsampler.

Full width, mixed precision, random images and targets: what an upsampler costs in a
training, on a machine without MMDetection. Needs torch, and ``dlu_mmdet.ops`` and
``dlu_mmdet.utils`` in a package that may hold nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlu_mmdet.ops import carafe, dlu, library
from dlu_mmdet.ops.self_test import check_device

CHANNELS, KERNEL = 256, 5
NAMES = ('bilinear', 'carafe', 'dlu')


class Upsampler(nn.Module):
    """Twice the size, by bilinear interpolation, CARAFE or DLU of group 1.

    Args:
        name (str): Of :data:`NAMES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        if name == 'bilinear':
            return
        self.compress = nn.Conv2d(CHANNELS, 64, 1)
        taps = KERNEL**2 * (4 if name == 'carafe' else 1)
        self.kernels = nn.Conv2d(64, taps, 3, padding=1)
        if name == 'dlu':
            self.offsets = nn.Conv2d(64, 8, 3, padding=1)
            nn.init.zeros_(self.offsets.weight)
            nn.init.zeros_(self.offsets.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.name == 'bilinear':
            return F.interpolate(x, scale_factor=2, mode='bilinear')
        y = self.compress(x)
        kernels = self.kernels(y)
        if self.name == 'carafe':
            masks = F.pixel_shuffle(kernels, 2).softmax(1)
            return carafe(x, masks, KERNEL, 1, 2)
        return dlu(x, kernels.softmax(1), self.offsets(y), KERNEL, 1, 2)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Of a ResNet-50: ``width`` channels inside, four times as many outside."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = _convolution(inputs, 4 * width, 1, stride)
        self.body = nn.Sequential(
            _convolution(inputs, width, 1),
            nn.ReLU(True),
            _convolution(width, width, 3, stride),
            nn.ReLU(True),
            _convolution(width, 4 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Pyramid(nn.Module):
    """A ResNet-50, a feature pyramid with three upsamplings, and a dense head.

    Args:
        name (str): Upsampler, of :data:`NAMES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, 1)
        self.stem = nn.Sequential(_convolution(3, 64, 7, 2), nn.ReLU(True), pool)
        stages, inputs = [], 64
        for width, count in zip((64, 128, 256, 512), (3, 4, 6, 3)):
            blocks = []
            for i in range(count):
                stride = 2 if i == 0 and width > 64 else 1
                blocks.append(Bottleneck(inputs, width, stride))
                inputs = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(
            nn.Conv2d(256 << i, CHANNELS, 1) for i in range(4)
        )
        self.upsamplers = nn.ModuleList(Upsampler(name) for _ in range(3))
        self.head = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(CHANNELS, 15, 1),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x, levels = self.stem(images), []
        for stage, lateral in zip(self.stages, self.laterals):
            x = stage(x)
            levels.append(lateral(x))
        for i in (2, 1, 0):
            h, w = levels[i].shape[2:]
            upsampled = self.upsamplers[i](levels[i + 1])[:, :, :h, :w]
            levels[i] = levels[i] + upsampled
        return [self.head(level) for level in levels]


def train(
    name: str, device: str, seconds: float, batch: int, size: Sequence[int]
) -> str:
    """Train until the time is over, five iterations at least.

    Args:
        name (str): Upsampler, of :data:`NAMES`.
        device (str): 'cuda' (float16 with a GradScaler) or 'cpu' (bfloat16).
        seconds (float): After the first iterations.
        batch (int): Images.
        size (Sequence[int]): Height and width of an image.

    Returns:
        str: A line of a Markdown table.
    """
    torch.manual_seed(0)
    model = Pyramid(name).to(device)
    images = torch.randn(batch, 3, *size, device=device)
    # blobs, so that there is something to learn
    target = F.avg_pool2d(images.mean(1, keepdim=True), 8, 4, 2) * 8
    optimizer = torch.optim.SGD(model.parameters(), 0.005, 0.9)
    on_gpu = device == 'cuda'
    scaler = torch.amp.GradScaler(device, enabled=on_gpu)
    dtype = torch.float16 if on_gpu else torch.bfloat16
    times, losses, skipped = [], [], 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        with torch.autocast(device, dtype):
            outputs = model(images)
        loss = sum(
            F.mse_loss(
                out.float(), F.adaptive_avg_pool2d(target, out.shape[2:]).expand_as(out)
            )
            for out in outputs
        )
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        losses.append(loss.item())  # waits for the GPU
        times.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float('nan')
    return (
        f'| {name} | {len(times)} | {1e3 * statistics.median(times[2:]):.1f} | '
        f'{memory:.2f} | {losses[0]:.4f} | {losses[-1]:.4f} | {skipped} |'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'))
    parser.add_argument('--upsamplers', nargs='+', choices=NAMES, default=NAMES)
    parser.add_argument('--seconds', type=float, default=12, help='for each upsampler')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1344))
    args = parser.parse_args()
    check_device(args.device)
    backend = library.gpu_backend() if args.device == 'cuda' else 'CPU'
    print(f'ResNet-50, {args.batch} x {args.size[0]} x {args.size[1]}, {backend}')
    print('| upsampler | iterations | ms | GiB | first loss | last loss | skipped |')
    print('|---|--:|--:|--:|--:|--:|--:|')
    for name in args.upsamplers:
        line = train(name, args.device, args.seconds, args.batch, args.size)
        print(line, flush=True)


if __name__ == '__main__':
    main()
