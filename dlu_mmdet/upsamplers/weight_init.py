"""How upsamplers start their layers; as mmengine's functions of these names."""

from torch import nn


def constant_init(module: nn.Module, val: float) -> None:
    """Set all weights to one value and biases to 0."""
    nn.init.constant_(module.weight, val)
    _zero_bias(module)


def normal_init(module: nn.Module, std: float) -> None:
    """Draw weights from a normal distribution; biases are 0."""
    nn.init.normal_(module.weight, 0, std)
    _zero_bias(module)


def xavier_init(module: nn.Module) -> None:
    """Draw weights from Xavier's uniform distribution; biases are 0."""
    nn.init.xavier_uniform_(module.weight)
    _zero_bias(module)


def _zero_bias(module: nn.Module) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
