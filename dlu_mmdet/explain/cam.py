"""Class activation maps of any layer of any module, and the axioms they obey.

Notation of XGrad-CAM (arXiv 2008.02312): F (K, H, W) the output of a layer, S
the score to explain as a function of F, g = dS/dF, and F without F_k the same
output with channel k set to zero. A method is a rule for the weights alpha (K,);
its map is ReLU(sum_k alpha_k F_k).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from mmengine.utils import ProgressBar, apply_to
from torch import Tensor, nn

from ..upsamplers.sites import SitesMixin

#: Below this share of sum_xy |F_k| a sum over F_k counts as rounding error.
CANCELLED = 1e-6
#: Below this share of |S| a drop of the score does: batches round differently.
ROUNDING = 1e-5


class LayerScore:
    """A score as a function of one layer's output.

    Calling it runs only the part of the network behind the layer: a module that
    had finished before the layer did cannot depend on it, so its output is
    recorded once and handed out again. Where that does not give the recorded
    score, the whole network is run instead.

    Args:
        module (nn.Module): The network, in eval mode.
        layer (str): Name of the layer, as in ``module.named_modules()``. It
            must run once and return a feature map (1, K, H, W).
        run (Callable[[int], Tensor]): ``run(n)`` puts n copies of the input
            through the network and returns the n scores, (n,) float.

    Attributes:
        features (Tensor): F, (1, K, H, W).

    Raises:
        ValueError: If the module is in training mode, the layer does not exist
            or does not run exactly once, or its output is not a feature map.
    """

    def __init__(
        self, module: nn.Module, layer: str, run: Callable[[int], Tensor]
    ) -> None:
        if module.training:
            raise ValueError(
                'module is in training mode, in which the copies of a batch '
                'change each other; call module.eval() first'
            )
        self._layer = find_layer(module, layer)
        self._module, self._run = module, run
        self._finished: dict[nn.Module, list] = {}
        self.features, score = self._record(module, layer)
        with torch.no_grad():
            replayed = self(self.features)
        # an output handed out again misses what a finished module, not run now,
        # did to it in place
        if not ((replayed - score).abs() <= ROUNDING * score.abs()).all():
            self._finished.clear()

    def __call__(self, features: Tensor) -> Tensor:
        """Run the rest of the network.

        Args:
            features (Tensor): (N, K, H, W), which replace the layer's output.

        Returns:
            Tensor: (N,), the scores.
        """
        with ExitStack() as stack:
            stack.enter_context(_without_checkpointing(self._module))
            for module, outputs in self._finished.items():
                replay = _replay(outputs, len(features))
                stack.enter_context(patch.object(module, 'forward', replay))
            stack.enter_context(
                # a copy, since an in-place operation may come next
                patch.object(self._layer, 'forward', lambda *a, **k: features.clone())
            )
            return self._run(len(features))

    def _record(self, module: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
        """Run once; keep what finished before the layer. Returns F and S."""
        outputs = []  # of the layer
        maps = {}  # names of the layers that return feature maps, in order
        unusable = _parts_of_counting_modules(module)

        def after(name: str, child: nn.Module, output: object) -> None:
            if _is_feature_map(output):
                maps[name] = None
            if child is self._layer:
                outputs.append(apply_to(output, torch.is_tensor, torch.clone))
            elif outputs or not _is_batch_of_one(output):
                # it runs after the layer (too), or not image by image
                unusable.add(child)
            else:
                # a copy, since an in-place operation may come next
                copy = apply_to(output, torch.is_tensor, torch.clone)
                self._finished.setdefault(child, []).append(copy)
                # what the whole returns, its parts need not return again
                for part in child.modules():
                    if part is not child:
                        self._finished.pop(part, None)

        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(_without_checkpointing(module))
            for name, child in module.named_modules():
                handle = child.register_forward_hook(
                    lambda child, args, output, name=name: after(name, child, output)
                )
                stack.callback(handle.remove)
            score = self._run(1)

        _check_layer(layer, outputs, list(maps))
        for child in unusable:
            self._finished.pop(child, None)
        return outputs[0], score


def _parts_of_counting_modules(module: nn.Module) -> set[nn.Module]:
    """Submodules of modules that cannot run in part."""
    counting = (m for m in module.modules() if isinstance(m, SitesMixin))
    return {part for m in counting for part in m.modules() if part is not m}


def _check_layer(layer: str, outputs: Sequence, maps: Sequence[str]) -> None:
    """Refuse a layer that runs more than once, or gives no feature map."""
    hint = _other_layers(layer, maps)
    if len(outputs) != 1:
        raise ValueError(
            f'layer {layer!r} runs {len(outputs)} times for this score, it must '
            f'run once; {hint}'
        )
    if not _is_feature_map(outputs[0]):
        raise ValueError(
            f'layer {layer!r} returns {_describe(outputs[0])}, not a feature map '
            f'(1, K, H, W); {hint}'
        )


def _other_layers(layer: str, maps: Sequence[str]) -> str:
    """The layer to suggest for one that cannot be explained."""
    parts = [name for name in maps if name.startswith(f'{layer}.')]
    parts = sorted(parts, key=lambda name: name.count('.'))[:8]
    if parts:
        return f'name one of its parts: {", ".join(parts)}'
    return f'name another layer, such as {", ".join(maps[-8:])}'


@dataclass(frozen=True)
class Evidence:
    """The inputs of all methods.

    Attributes:
        features (Tensor): F, (K, H, W).
        gradients (Tensor): g = dS/dF, (K, H, W).
        score (Tensor): S(F), a scalar.
        drops (Tensor): S(F) - S(F without F_k), (K,).
    """

    features: Tensor
    gradients: Tensor
    score: Tensor
    drops: Tensor

    @property
    def is_empty(self) -> bool:
        """Whether the score does not depend on the layer, up to rounding."""
        still = self.drops.abs() <= ROUNDING * self.score.abs()
        return not self.gradients.any() and bool(still.all())


@dataclass(frozen=True)
class Explanation:
    """The result of one method.

    Attributes:
        weights (Tensor): alpha, (K,).
        heatmap (Tensor): ReLU(sum_k alpha_k F_k), (H, W), not normalized.
        sensitivity (float): See :func:`sensitivity`.
        conservation (float): See :func:`conservation`.
    """

    weights: Tensor
    heatmap: Tensor
    sensitivity: float
    conservation: float


def xgradcam(evidence: Evidence) -> Tensor:
    """Weights of XGrad-CAM (arXiv 2008.02312).

    alpha_k = sum_xy(F_k g_k) / sum_xy F_k. A channel whose sum is below 1e-6 of
    sum_xy |F_k| gets weight 0: it is all zero, or positive and negative values
    cancel, and the quotient would be that of rounding errors.
    """
    features, gradients = evidence.features, evidence.gradients
    total = features.sum((1, 2))
    cancelled = total.abs() <= CANCELLED * features.abs().sum((1, 2))
    weights = (features * gradients).sum((1, 2)) / total.masked_fill(cancelled, 1)
    return weights.masked_fill(cancelled, 0)


def gradcam(evidence: Evidence) -> Tensor:
    """Weights of Grad-CAM (arXiv 1610.02391): alpha_k = mean_xy g_k."""
    return evidence.gradients.mean((1, 2))


def gradcam_plus_plus(evidence: Evidence) -> Tensor:
    """Weights of Grad-CAM++ (arXiv 1710.11063), for Y = exp(S).

    alpha_k = sum_xy a_k ReLU(g_k) with a_k = g_k^2 / (2 g_k^2 + g_k^3 sum F_k),
    which is ReLU(g_k) / (2 + g_k sum F_k). The factor exp(S) = dY/dS, common to
    all weights, is left out: it does not change the picture, and the axioms are
    about S. Where the denominator is 0 the pixel counts 0; that takes a layer
    with negative values.
    """
    gradients = evidence.gradients
    denominator = 2 + gradients * evidence.features.sum((1, 2))[:, None, None]
    terms = gradients.clamp(min=0) / denominator
    return terms.masked_fill(denominator == 0, 0).sum((1, 2))


def ablationcam(evidence: Evidence) -> Tensor:
    """Weights of Ablation-CAM (WACV 2020): alpha_k = (S - S_k) / S.

    S_k is S(F without F_k). The paper's S is positive; a logit may not be, so
    the divisor is |S|, without which the map would be turned inside out.
    """
    return evidence.drops / evidence.score.abs()


def ablationcam_slope(evidence: Evidence) -> Tensor:
    """Ablation-CAM's weights before its approximation: (S - S_k) / sum_xy F_k.

    The paper derives the slope (S - S_k) / ||F_k|| and then replaces the norm by S. In
    this form alpha_k F_k has the unit of S, as the axioms need; the first axiom holds
    by construction. The guard is that of :func:`xgradcam`.
    """
    features = evidence.features
    total = features.sum((1, 2))
    cancelled = total.abs() <= CANCELLED * features.abs().sum((1, 2))
    weights = evidence.drops / total.masked_fill(cancelled, 1)
    return weights.masked_fill(cancelled, 0)


#: Rules for the weights, by the name that the command line knows.
METHODS: dict[str, Callable[[Evidence], Tensor]] = {
    'xgradcam': xgradcam,
    'gradcam': gradcam,
    'gradcam++': gradcam_plus_plus,
    'ablationcam': ablationcam,
    'ablationcam-slope': ablationcam_slope,
}
#: The methods' own names, for tables and figures.
TITLES = {
    'xgradcam': 'XGrad-CAM',
    'gradcam': 'Grad-CAM',
    'gradcam++': 'Grad-CAM++',
    'ablationcam': 'Ablation-CAM',
    'ablationcam-slope': 'Ablation-CAM, slope',
}


def sensitivity(evidence: Evidence, weights: Tensor) -> float:
    """Deviation of weights from the axiom of sensitivity; 0 is best.

    The axiom: the contribution of a channel to the map equals the drop of the score
    when the channel is removed. Returns
    sum_k |S(F) - S(F without F_k) - sum_xy alpha_k F_k| over
    sum_k |S(F) - S(F without F_k)|; NaN if no channel matters.
    """
    contributions = weights * evidence.features.sum((1, 2))
    error = (evidence.drops - contributions).abs().sum()
    return (error / evidence.drops.abs().sum()).item()


def conservation(evidence: Evidence, weights: Tensor) -> float:
    """Deviation of weights from the axiom of conservation; 0 is best.

    The axiom: the sum of the map equals the score. |S(F) - sum_xy,k alpha_k F_k| over
    |S(F)|.
    """
    contributions = weights * evidence.features.sum((1, 2))
    return ((evidence.score - contributions.sum()) / evidence.score).abs().item()


def collect_evidence(
    score: LayerScore, batch_size: int = 32, progress: bool = False
) -> Evidence:
    """Compute the gradient of a score and its drop without each channel.

    Args:
        score (LayerScore): The score.
        batch_size (int): Number of channels to remove at once. Defaults to 32.
        progress (bool): Whether to show a progress bar. Defaults to False.

    Returns:
        Evidence: For :func:`explain`.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    features = score.features.detach().clone().requires_grad_()
    with torch.enable_grad():
        (value,) = score(features)
        # a score that does not use the layer may have no gradient at all
        gradients = torch.zeros_like(features)
        if value.requires_grad:
            (found,) = torch.autograd.grad(value, features, allow_unused=True)
            gradients = gradients if found is None else found
    features, value = features.detach()[0], value.detach()

    drops = []
    channels = torch.arange(len(features), device=features.device)
    bar = ProgressBar(len(channels)) if progress else None
    for chunk in channels.split(batch_size):
        removed = features.repeat(len(chunk), 1, 1, 1)
        removed[channels[: len(chunk)], chunk] = 0
        with torch.no_grad():
            drops.append(value - score(removed))
        if bar:
            bar.update(len(chunk))
    return Evidence(features, gradients[0], value, torch.cat(drops))


def explain(evidence: Evidence, method: str) -> Explanation:
    """Compute weights, map and axiom figures of a method.

    Args:
        evidence (Evidence): From :func:`collect_evidence`.
        method (str): A key of :data:`METHODS`.

    Returns:
        Explanation: Weights, map and the deviations from both axioms.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f'method {method!r} is none of {", ".join(METHODS)}')
    weights = METHODS[method](evidence)
    heatmap = torch.einsum('k,khw->hw', weights, evidence.features).clamp(min=0)
    return Explanation(
        weights,
        heatmap,
        sensitivity(evidence, weights),
        conservation(evidence, weights),
    )


def classifier_score(
    model: nn.Module, image: Tensor, label: int
) -> Callable[[int], Tensor]:
    """The score of one class of a plain classifier, for :class:`LayerScore`.

    Args:
        model (nn.Module): Turns images (N, 3, H, W) into logits (N, classes).
        image (Tensor): (1, 3, H, W).
        label (int): The class.

    Returns:
        Callable[[int], Tensor]: Gives the logits of n copies of the image, (n,).
    """
    return lambda n: model(image.expand(n, -1, -1, -1))[:, label]


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """Find a layer by its name in ``module.named_modules()``.

    Raises:
        ValueError: If it does not exist; the message lists similar names.
    """
    layers = dict(module.named_modules())
    if not name or name not in layers:
        nearest = difflib.get_close_matches(name, layers, n=5, cutoff=0.3)
        raise ValueError(
            f'layer {name!r} does not exist; the nearest names are '
            + ', '.join(nearest or list(layers)[1:6])
        )
    return layers[name]


def _without_checkpointing(module: nn.Module) -> ExitStack:
    """Let a network with ``with_cp=True`` keep its activations.

    Gradient checkpointing runs a part again when the gradient is asked for, and by
    then the layer has its own forward back.
    """
    checkpoint = torch.utils.checkpoint.checkpoint
    own = ['use_reentrant', 'preserve_rng_state', 'context_fn', 'determinism_check']
    own += ['debug', 'early_stop']

    def call(function: Callable, *args, **kwargs):
        return function(*args, **{k: v for k, v in kwargs.items() if k not in own})

    # some files import the function itself
    files = {type(child).__module__ for child in module.modules()}
    stack = ExitStack()
    for file in {'torch.utils.checkpoint', *files}:
        for name, value in list(vars(sys.modules[file]).items()):
            if value is checkpoint:
                stack.enter_context(patch.object(sys.modules[file], name, call))
    return stack


def _replay(outputs: Sequence, copies: int) -> Callable:
    """A forward that returns recorded outputs of one image, for several."""
    remaining = iter(outputs)

    def forward(*args, **kwargs):
        return apply_to(
            next(remaining),
            torch.is_tensor,
            lambda x: x.repeat(copies, *[1] * (x.ndim - 1)),
        )

    return forward


def _is_feature_map(output: Any) -> bool:
    """Whether it is (1, K, H, W)."""
    return torch.is_tensor(output) and output.ndim == 4 and len(output) == 1


def _is_batch_of_one(output: Any) -> bool:
    """Whether it is a tensor, or a list of tensors, with a first axis of 1."""
    if torch.is_tensor(output):
        return output.ndim > 0 and len(output) == 1
    return (
        isinstance(output, (list, tuple))
        and len(output) > 0
        and all(_is_batch_of_one(item) for item in output)
    )


def _describe(output: Any) -> str:
    """Say what a layer returned."""
    if torch.is_tensor(output):
        return f'a tensor {tuple(output.shape)}'
    if isinstance(output, (list, tuple)):
        return f'a {type(output).__name__} of {len(output)}'
    return f'a {type(output).__name__}'
