"""Upsamplers trained, tested and compared."""
