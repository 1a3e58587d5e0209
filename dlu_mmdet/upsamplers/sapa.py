"""SAPA: kernels from the similarity of encoder and decoder points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.checks import check_number
from .builder import UPSAMPLERS
from .guided import ONE_KERNEL, GuidedUpsampler, repeat_to, score_windows
from .start import check_start, start_bias
from .weight_init import constant_init, normal_init

FORMS = ('B', 'G')


@UPSAMPLERS.register_module('sapa')
class SAPA(GuidedUpsampler):
    """SAPA: each output pixel takes from the source pixels that its guide resembles.

    With X the features, Y the guide, both after layer normalization, at output pixel
    l' over source pixel l, for the pixels p of the K x K window around l::

        W(l', p) = softmax over p of  q(l') . k(p)          k(p) = P_x X(p)
        q(l') = P_y Y(l')                                              form B
        q(l') = g P_y Y(l') + (1 - g) P_x' X(l),  g = sigmoid(linear(X))(l)   form G

    and the output sums the features under W. Form B is a bilinear similarity of rank
    d, form G the gated one. Taps outside the map score 0 and take part in the softmax;
    the features there are 0.

    Source: `SAPA <https://arxiv.org/abs/2209.12866>`_. Layer normalization over the
    channels, biases, a P_x' of its own that reads X unnormalized, the border and the
    start are as in ``SAPA.py`` (form B) and ``SAPAExp.py`` (its 'gate', form G) of
    poppinace/sapa. The logs of the authors' segmentation runs there print these two
    modules, with d = 32 and K = 5: ``segformer/20231123_000946.log`` has form B,
    ``20231124_100502.log`` form G. The files default to d = 64. The keys are theirs,
    except form G's ``q``, which is ``qy`` in ``SAPAExp.py``. None of the files has
    SAPA-I of the README, which has no parameters.

    The authors' detectors have another module: ``sapa_base.py`` of tiny-smart/sapa and
    of tiny-smart/detection-with-upsamplers, with d = 32, group normalization in 32
    groups and as many parameters as form B. SAPA-D, ``sapa_deform.py`` there, is not
    here.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1; the guide's size decides.
        guide_channels (int): Number of channels of the guide.
        form (str): 'B', bilinear, or 'G', gated. Defaults to 'B'.
        up_kernel (int): Side K of the window, odd. Defaults to 5.
        embedding_channels (int): d. Defaults to 32.
        start (str): 'paper', kernels next to even, or 'nearest', which adds a learned
            bias of the K*K taps to the scores, ``window_bias``, since there is none in
            the paper. Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range, the form is unknown, or it cannot hold
            ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int,
        guide_channels: int,
        form: str = 'B',
        up_kernel: int = 5,
        embedding_channels: int = 32,
        start: str = 'paper',
    ) -> None:
        super().__init__(channels, scale_factor, guide_channels, up_kernel)
        check_number('embedding_channels', embedding_channels, 1)
        if form not in FORMS:
            raise ValueError(
                f'form must be one of {", ".join(map(repr, FORMS))}, got {form!r}'
            )
        check_start(self, start, ('paper', 'nearest'), ONE_KERNEL)
        self.form = form
        self.start = start
        self.embedding_channels = embedding_channels
        self.norm_y = nn.LayerNorm(guide_channels)
        self.norm_x = nn.LayerNorm(channels)
        self.q = nn.Linear(guide_channels, embedding_channels)
        self.k = nn.Linear(channels, embedding_channels)
        if form == 'G':
            self.qx = nn.Linear(channels, embedding_channels)
            self.gate = nn.Linear(channels, 1)
        if start != 'paper':
            self.window_bias = nn.Parameter(torch.empty(up_kernel**2))
        self.init_weights()

    def init_weights(self) -> None:
        """Small random projections, as the authors start them."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                normal_init(module, std=0.02)
            else:
                constant_init(module, val=1)
        if self.start != 'paper':
            with torch.no_grad():
                bias = start_bias(self.start, self.up_kernel)
                self.window_bias.copy_(bias.flatten())

    def predict(self, x: Tensor, guide: Tensor) -> Tensor:
        x, y = (maps.permute(0, 2, 3, 1) for maps in (x, guide))
        normed = self.norm_x(x)
        keys = self.k(normed).permute(0, 3, 1, 2)
        queries = self.q(self.norm_y(y)).permute(0, 3, 1, 2)
        if self.form == 'G':
            gate = self.gate(normed).sigmoid().permute(0, 3, 1, 2)
            own = self.qx(x).permute(0, 3, 1, 2)
            gate, own = repeat_to(torch.cat([gate, (1 - gate) * own], 1), guide).split(
                [1, self.embedding_channels], dim=1
            )
            queries = gate * queries + own
        scores = score_windows(keys, queries, self.up_kernel)
        if self.start != 'paper':
            scores = scores + self.window_bias[:, None, None]
        return scores.softmax(dim=1)

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, form={self.form!r}, '
            f'embedding_channels={self.embedding_channels}, start={self.start!r}'
        )
