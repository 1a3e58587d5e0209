"""AP of left-out images, matching, significance, and what upsamplers cost."""

from .. import openmmlab  # noqa: F401
