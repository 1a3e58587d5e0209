"""Class activation maps of detections."""
