"""What necks and tools ask of an upsampler, as checks that run on any class."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..utils.torch_compat import AT_LEAST_24
from .builder import build_upsampler, is_guided, upsampler_class
from .resize import upsample_to

#: Ratios that are tried: a pyramid has 2, other necks have others.
RATIOS = (1, 2, 3, 4)
_SIZES = ((1, 1), (3, 5), (6, 4))
# of a guide for 3 x 5 pixels, where the finer level is rounded down
_ODD = (5, 9)
# float16 convolutions on a CPU are later than torch 2.1
_HALVES = (torch.bfloat16, torch.float16)[: 2 if AT_LEAST_24 else 1]


@dataclass(frozen=True)
class Subject:
    """The upsampler that is checked.

    Args:
        cfg (dict): As :func:`~dlu_mmdet.upsamplers.build_upsampler`.
        channels (int): C.
        guide_channels (int): Channels of the guide, for a guided upsampler.
    """

    cfg: dict
    channels: int
    guide_channels: int

    @property
    def is_guided(self) -> bool:
        """Whether the class reads a guide."""
        return is_guided(upsampler_class(self.cfg))

    def build(self, scale_factor: int = 2, seed: int = 0) -> nn.Module:
        """Build it as a neck does."""
        torch.manual_seed(seed)
        module = build_upsampler(
            self.cfg, self.channels, scale_factor, self.guide_channels
        )
        if hasattr(module, 'init_weights'):
            module.init_weights()
        return module

    def trained(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build it and move every weight, since some start at zero."""
        module = self.build().to(dtype)
        with torch.no_grad():
            for weight in module.parameters():
                if weight.is_floating_point():
                    weight += 0.05 * torch.randn_like(weight)
        return module

    def inputs(
        self,
        shape: tuple[int, int] = (3, 5),
        size: tuple[int, int] = (6, 10),
        batch: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Features (N, C, *shape) and, for a guided one, a guide of a size."""
        torch.manual_seed(1)
        maps = [torch.randn(batch, self.channels, *shape)]
        if self.is_guided:
            maps.append(torch.randn(batch, self.guide_channels, *size))
        return [x.to(dtype) for x in maps]


class Violation(Exception):
    """What a check found."""


def _same(out: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Compare two outputs, relative to the largest value."""
    difference = (out.float() - expected.float()).abs().max().item()
    largest = expected.float().abs().max().item()
    if not difference <= tolerance * max(largest, 1e-6):
        raise Violation(f'{what} differs by {difference:.1e} of {largest:.1e}')


def check_sizes(subject: Subject) -> None:
    """Gives (N, C, s*H, s*W) at every ratio s, from odd sizes and one pixel too."""
    for s in RATIOS:
        for h, w in _SIZES:
            size = (s * h, s * w)
            x, *guide = subject.inputs((h, w), size)
            try:
                upsample_to(subject.build(s), x, size, guide[0] if guide else None, s)
            except Exception as error:
                raise Violation(
                    f'at a ratio of {s}, for {tuple(x.shape)}: {error}'
                ) from error


def check_requested_size(subject: Subject) -> None:
    """Goes to the size of the finer level where that is not the ratio times its own."""
    module = subject.build()
    for h, w in ((5, 9), (7, 11), (6, 9)):
        x, *guide = subject.inputs((3, 5), (h, w))
        upsample_to(module, x, (h, w), guide[0] if guide else None, scale_factor=2)


def check_dtype(subject: Subject) -> None:
    """Keeps float32, float64, bfloat16 and float16, and gives finite values."""
    expected = subject.build()(*subject.inputs(size=_ODD))
    for dtype in (torch.float32, torch.float64, *_HALVES):
        out = subject.build().to(dtype)(*subject.inputs(size=_ODD, dtype=dtype))
        if out.dtype != dtype:
            raise Violation(f'it gave {out.dtype} for {dtype}')
        if not out.isfinite().all():
            raise Violation(f'the output for {dtype} has values that are not finite')
        tolerance = 0.1 if dtype in _HALVES else 1e-4
        _same(out, expected, f'the output for {dtype}', tolerance)


def check_eval(subject: Subject) -> None:
    """In eval mode gives one output for one input, image by image."""
    module, inputs = subject.trained().eval(), subject.inputs()
    kept = [x.clone() for x in inputs]
    with torch.no_grad():
        expected = module(*inputs)
        if not all(map(torch.equal, inputs, kept)):
            raise Violation('it changes its input in place')
        _same(module(*inputs), expected, 'the output of a second call', 0)
        alone = module(*(x[:1] for x in inputs))
        _same(alone, expected[:1], 'the output of an image without the others')


def _check_gradients(
    module: nn.Module, inputs: list[Tensor], out: Tensor, missing: bool = True
) -> None:
    """Refuse gradients that are not finite, and missing ones unless that is False."""
    out.float().square().sum().backward()
    named = {'its input': inputs[0]}
    named.update((f'parameter {k}', p) for k, p in module.named_parameters())
    for name, tensor in named.items():
        if not tensor.requires_grad:
            continue
        if tensor.grad is None:
            if missing:
                raise Violation(f'{name} got no gradient')
        elif not tensor.grad.isfinite().all():
            raise Violation(f'the gradient of {name} is not finite')


def check_gradients(subject: Subject) -> None:
    """Gives a finite gradient to its input and to every parameter."""
    module, inputs = subject.build(), subject.inputs()
    inputs[0].requires_grad_()
    _check_gradients(module, inputs, module(*inputs))


def check_gradcheck(subject: Subject) -> None:
    """Gives the gradients that finite differences in float64 give."""
    module = subject.trained(torch.float64)
    inputs = subject.inputs((2, 3), (4, 6), 1, torch.float64)
    weights = dict(module.named_parameters())

    def forward(*tensors: Tensor) -> Tensor:
        maps, values = tensors[: len(inputs)], tensors[len(inputs) :]
        return functional_call(module, dict(zip(weights, values)), maps)

    leaves = [x.requires_grad_() for x in inputs]
    # in a few random directions: every entry would take minutes
    torch.autograd.gradcheck(forward, (*leaves, *weights.values()), fast_mode=True)


def check_autocast(subject: Subject) -> None:
    """Trains under autocast in bfloat16, also on bfloat16 features."""
    module = subject.build()
    expected = module(*subject.inputs()).detach()
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype) for x in subject.inputs()]
        inputs[0].requires_grad_()
        module.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            out = module(*inputs)
        _same(out.detach(), expected, f'the output for {dtype} under autocast', 0.1)
        _check_gradients(module, inputs, out, missing=False)


def check_empty_batch(subject: Subject) -> None:
    """Takes a batch of no image, as a mask head has without a positive box."""
    layouts = torch.contiguous_format, torch.channels_last
    dtypes = torch.float32, torch.bfloat16
    for s, layout, dtype in itertools.product(RATIOS[:3], layouts, dtypes):
        module = subject.build(s).to(dtype)
        inputs = subject.inputs(size=(3 * s, 5 * s), batch=0, dtype=dtype)
        inputs = [x.to(memory_format=layout) for x in inputs]
        inputs[0].requires_grad_()
        out = module(*inputs)
        if out.shape != (0, subject.channels, 3 * s, 5 * s) or out.dtype != dtype:
            raise Violation(
                f'it gave {out.dtype}, {tuple(out.shape)} for {dtype}, '
                f'{tuple(inputs[0].shape)} at a ratio of {s}'
            )
        _check_gradients(module, inputs, out)
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and parameter.grad.any():
                raise Violation(f'the gradient of parameter {name} is not 0')


def check_channels_last(subject: Subject) -> None:
    """Gives the same numbers and gradients in the memory layout channels_last."""
    module, inputs = subject.trained(), subject.inputs(size=_ODD)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [x.clone(memory_format=layout).requires_grad_() for x in inputs]
        out = module(*leaves)
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        results.append((out.detach(), *gradients))
    expected = results[0][0]
    names = 'the output', 'the gradient of its input', 'the gradient of the guide'
    for name, wanted, found in zip(names, *results):
        _same(found, wanted, name)
    module = module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        _same(module(*leaves), expected, 'the output with weights in channels_last')


def check_state_dict(subject: Subject) -> None:
    """Is the same after its state_dict is loaded into a new one."""
    module, inputs = subject.trained().eval(), subject.inputs()
    other = subject.build(seed=1).eval()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        _same(other(*inputs), module(*inputs), 'the output', 0)


def check_copies(subject: Subject) -> None:
    """Is the same after copy.deepcopy and after pickle."""
    module, inputs = subject.trained().eval(), subject.inputs()
    with torch.no_grad():
        expected = module(*inputs)
        _same(copy.deepcopy(module)(*inputs), expected, 'the output of a deepcopy', 0)
        copied = pickle.loads(pickle.dumps(module))
        _same(copied(*inputs), expected, 'the output after pickle', 0)


def check_compile(subject: Subject) -> None:
    """Goes through torch.compile in one graph, at several batch sizes."""
    torch._dynamo.reset()  # recompilations of a forward are limited
    module = subject.trained()
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    for batch, size in ((2, (6, 10)), (0, (6, 10)), (3, _ODD)):
        inputs = [x.requires_grad_() for x in subject.inputs(size=size, batch=batch)]
        found, wanted = (
            (out.detach(), *torch.autograd.grad(out.square().sum(), inputs))
            for out in (compiled(*inputs), module(*inputs))
        )
        names = 'the output', 'the gradient of its input', 'the gradient of the guide'
        for name, got, expected in zip(names, found, wanted):
            name += f' for a batch of {batch}, compiled,'
            if got.shape != expected.shape:
                raise Violation(
                    f'{name} has {tuple(got.shape)} for {tuple(expected.shape)}'
                )
            if batch:
                _same(got, expected, name)


def check_export(subject: Subject) -> None:
    """Goes through torch.export with open sizes, and gives the same numbers."""
    module = subject.trained().eval()
    n, h, w = (torch.export.Dim(key, min=2) for key in 'nhw')
    inputs = subject.inputs((6, 8), (12, 16))
    dynamic = [{0: n, 2: h, 3: w}, {0: n, 2: 2 * h, 3: 2 * w}][: len(inputs)]
    with torch.no_grad():
        program = torch.export.export(
            module, tuple(inputs), dynamic_shapes=tuple(dynamic)
        )
        # a size that was not traced
        inputs = subject.inputs((5, 7), (10, 14), batch=3)
        out = program.module()(*inputs)
        _same(out, module(*inputs), 'the output of the exported program')


#: Title, check, and what to do where it fails. A fault may fail later ones too. The
#: last two need torch 2.4.
CHECKS: tuple[tuple[str, Callable[[Subject], None], str], ...] = (
    (
        'sizes',
        check_sizes,
        'let forward give scale_factor times the height and width with the channels '
        'that it takes, or the size of the guide where guided = True',
    ),
    (
        'requested size',
        check_requested_size,
        'let a guided forward give the size of its guide, and one with any_size = True '
        'the size that it is called with',
    ),
    ('dtype', check_dtype, 'make new tensors by x.new_zeros or with dtype=x.dtype'),
    (
        'eval',
        check_eval,
        'draw random numbers and take statistics of the batch only where '
        'self.training, and do not write into x',
    ),
    (
        'gradients',
        check_gradients,
        'use every parameter in forward, and no detach or .data on the way; '
        'distributed training stops at a parameter without gradient',
    ),
    (
        'gradcheck',
        check_gradcheck,
        'let the backward of an autograd.Function be the derivative of its forward, '
        'and keep float64',
    ),
    (
        'autocast',
        check_autocast,
        'convert with .to(x.dtype) where float32 and bfloat16 meet, for --amp',
    ),
    (
        'empty batch',
        check_empty_batch,
        'reshape with explicit sizes instead of -1, and use every parameter',
    ),
    (
        'channels_last',
        check_channels_last,
        'use reshape for view, and no strides or storage',
    ),
    (
        'state_dict',
        check_state_dict,
        'hold weights as nn.Parameter, in nn.ModuleList or by register_buffer, so that '
        'checkpoints have them',
    ),
    (
        'copies',
        check_copies,
        'define the class at the top of the file, and keep no lambda, hook or open '
        'file in it',
    ),
    (
        'compile',
        check_compile,
        'keep to tensor operations that torch.compile can trace: no numpy, .item(), '
        'print or if on values in forward; all else works without torch.compile',
    ),
    (
        'export',
        check_export,
        'let no Python if depend on the size of a tensor; without this everything but '
        'dlu_mmdet export works',
    ),
)[: None if AT_LEAST_24 else -2]


def check_upsampler(
    upsample_cfg: dict, channels: int = 32, guide_channels: int | None = None
) -> Iterator[tuple[str, str | None]]:
    """Check what necks and tools ask of an upsampler.

    Args:
        upsample_cfg (dict): See :func:`dlu_mmdet.upsamplers.build_upsampler`.
        channels (int): Channels of the features. Defaults to 32.
        guide_channels (int, optional): Channels of the guide of a guided one. Defaults
            to ``channels``, as in this package's pyramids.

    Yields:
        tuple[str, str | None]: The title of a check, and a sentence that says what is
        wrong and what to do, None where nothing is.

    Raises:
        FileNotFoundError: If the file of the upsampler does not exist.
        TypeError: If it is no class of modules, or an argument does not fit.
        ValueError: If it is unknown, or refuses its arguments at a ratio of 2.
    """
    subject = Subject(upsample_cfg, channels, guide_channels or channels)
    with torch.random.fork_rng(devices=[]):
        subject.build()
    for title, check, remedy in CHECKS:
        try:
            with torch.random.fork_rng(devices=[]):
                check(subject)
        except Exception as error:  # whatever a class of the user's raises
            said = next(iter(str(error).splitlines()), '')
            if not isinstance(error, Violation):
                said = f'it raised {type(error).__name__}: {said}'
            yield title, f'{said}; {remedy}'
        else:
            yield title, None
