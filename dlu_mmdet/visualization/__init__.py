"""Pictures of what detectors find and of how their upsamplers work."""

from .detection_hook import DetVisualizationHook
from .hook import UpsampleVisualizationHook

__all__ = ['DetVisualizationHook', 'UpsampleVisualizationHook']
