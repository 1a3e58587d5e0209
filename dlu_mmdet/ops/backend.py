"""What the operators of every device have in common: checks, results, layouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_arguments, check_countable
from .reference import is_channels_last

FORWARD, BACKWARD_FEATURES, BACKWARD_KERNELS = range(3)  # as in reassembly.cpp


def empty(
    like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """A new tensor, in the layout and, unless another is given, dtype of one."""
    last = is_channels_last(like)
    return torch.empty(
        shape,
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


class Backend:
    """The operators by their names in ``torch.ops``, for one device.

    They check the arguments, allocate the results and leave the rest to
    :meth:`compute`, which a device overrides. Here it does nothing, which is all that
    fake and meta tensors need. Derivatives are in :mod:`dlu_mmdet.ops.autograd`.

    What does not fit is a ValueError, a dtype that is not supported a TypeError.
    """

    def compute(
        self,
        operation: int,
        sizes: Sequence[int],
        features: Tensor,
        kernels: Tensor,
        offsets: Tensor | None,
        grad: Tensor | None,
        *results: Tensor | None,
    ) -> None:
        """Write the results of an operation, whose arguments are checked.

        Args:
            operation (int): ``FORWARD``, ``BACKWARD_FEATURES`` or ``BACKWARD_KERNELS``.
            sizes (Sequence[int]): kernel_size, group_size and scale_factor.
            features (Tensor): (N, C, H, W).
            kernels (Tensor): The kernels of DLU or the masks of CARAFE.
            offsets (Tensor, optional): Of DLU.
            grad (Tensor, optional): The gradient of the output, in a backward.
            *results (Tensor, optional): The output, the gradient of the features or
                that of the kernels; after the last one the gradient of the offsets.
                The gradient of DLU's kernels is float32 or float64 and starts as zeros.
        """

    def _forward(
        self, sizes: Sequence[int], features: Tensor, kernels: Tensor, *offsets: Tensor
    ) -> Tensor:
        inputs = self._checked(sizes, None, features, kernels, *offsets)
        n, c, h, w = features.shape
        out = empty(features, (n, c, sizes[2] * h, sizes[2] * w))
        self.compute(FORWARD, sizes, *inputs, None, out)
        return out

    def _backward_features(
        self,
        sizes: Sequence[int],
        grad: Tensor,
        features: Tensor,
        *others: Tensor,
    ) -> Tensor:
        inputs = self._checked(sizes, grad, features, *others)
        out = empty(features, features.shape)
        self.compute(BACKWARD_FEATURES, sizes, *inputs, grad, out)
        return out

    def _backward_kernels(
        self,
        sizes: Sequence[int],
        grad: Tensor,
        features: Tensor,
        kernels: Tensor,
        *offsets: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = self._checked(sizes, grad, features, kernels, *offsets)
        if offsets:
            # sums over scattered positions are kept in float32 at least
            wide = torch.promote_types(kernels.dtype, torch.float32)
            out = empty(kernels, kernels.shape, wide).zero_()
        else:
            out = empty(kernels, kernels.shape)
        of_offsets = [empty(tensor, tensor.shape) for tensor in offsets]
        self.compute(BACKWARD_KERNELS, sizes, *inputs, grad, out, *of_offsets)
        return (out.to(kernels.dtype), *of_offsets)

    @staticmethod
    def _checked(
        sizes: Sequence[int],
        grad: Tensor | None,
        features: Tensor,
        kernels: Tensor,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The three tensors of :meth:`compute`, of arguments that fit."""
        if offsets is None:
            check_arguments(features, sizes, grad, masks=kernels)
        else:
            check_arguments(features, sizes, grad, kernels=kernels, offsets=offsets)
        check_countable(features.shape, sizes)
        return features, kernels, offsets

    def dlu(self, *args: Tensor | int) -> Tensor:
        """See :func:`dlu_mmdet.ops.dlu`."""
        return self._forward(args[-3:], *args[:-3])

    def dlu_backward_features(self, *args: Tensor | int) -> Tensor:
        """The gradient of ``features``; the gradient of the output comes first."""
        return self._backward_features(args[-3:], *args[:-3])

    def dlu_backward_kernels(self, *args: Tensor | int) -> tuple[Tensor, Tensor]:
        """The gradients of ``kernels`` and of ``offsets``."""
        return self._backward_kernels(args[-3:], *args[:-3])

    carafe = dlu
    carafe_backward_features = dlu_backward_features

    def carafe_backward_masks(self, *args: Tensor | int) -> Tensor:
        """The gradient of ``masks``, of which only shape and dtype are read."""
        return self._backward_kernels(args[-3:], *args[:-3])[0]
