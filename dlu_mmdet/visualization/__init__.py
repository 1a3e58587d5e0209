"""Pictures of what detectors find and of how their upsamplers work."""

from .hook import UpsampleVisualizationHook

__all__ = ['UpsampleVisualizationHook']
