"""Upsamplers trained, tested and compared."""

from .. import openmmlab  # noqa: F401
