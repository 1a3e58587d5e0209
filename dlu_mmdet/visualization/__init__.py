"""Figures of detections and of the upsamplers behind them."""

from .. import openmmlab  # noqa: F401
from .detection_hook import DetVisualizationHook
from .hook import UpsampleVisualizationHook

__all__ = ['DetVisualizationHook', 'UpsampleVisualizationHook']
