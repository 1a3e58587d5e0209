"""Pictures of what detectors find and of how their upsamplers work."""
