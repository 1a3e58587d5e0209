"""Settings of explanations; imports nothing, as the command line needs them first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Names of the methods, as :data:`dlu_mmdet.explain.cam.METHODS` has them.
METHODS = ('xgradcam', 'gradcam', 'gradcam++', 'ablationcam', 'ablationcam-slope')
#: What can be averaged over detections of the test set, and the columns of each.
MEASURES = dict(
    axioms=('sensitivity', 'conservation'),
    pointing=('energy in box', 'energy in mask'),
    curves=('deletion', 'insertion'),
)
#: The picture of explanations, the number of detections to average over, the number of
#: altered images of a curve, and the picture of the curves.
OUT = 'work_dirs/explain.png'
NUM_DETECTIONS = 50
STEPS = 20
CURVES_OUT = 'work_dirs/curves.png'


@dataclass(frozen=True)
class Options:
    """Settings that explanations of images and of a test set share.

    Attributes:
        methods (Sequence[str]): Names out of :data:`METHODS`.
        layer (str, optional): Name of the layer to explain; ``{level}`` in it stands
            for the pyramid level that scored the detection. Defaults to the stage of
            the backbone under that level.
        score_thr (float): Minimum score of a detection.
        batch_size (int): Channels to remove, or altered images to run, at once.
        device (str): Device of the detectors.
        cfg_options (Mapping, optional): Settings to override in every config.
        upsampler (dict, optional): ``upsample_cfg`` of every neck.
    """

    methods: Sequence[str] = ('xgradcam', 'gradcam', 'gradcam++', 'ablationcam')
    layer: str | None = None
    score_thr: float = 0.3
    batch_size: int = 32
    device: str = 'cpu'
    cfg_options: Mapping | None = None
    upsampler: dict | None = None
