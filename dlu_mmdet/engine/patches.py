"""The changes that this package makes to other packages, for the whole process.

At import, since MMDetection's own tools need them for configs of this package
(:func:`patch_at_import`):

| what | why | may go when |
|---|---|---|
| `torch.load` with `weights_only` takes what mmengine stores | mmengine's message hub is in every checkpoint | mmengine allows its own types |
| `CocoDataset` and `CocoMetric` read through :mod:`~dlu_mmdet.datasets.coco_io` | incomplete files train, and are scored, as they are written | mmdet completes annotations |
| mmdet's metrics take one IoU threshold, and numpy 1.24 | `proposal_fast` fails without | mmdet mends `eval_recalls` |
| mmcv's `carafe` runs on CPUs | mmcv has the operator for GPUs alone | mmcv has it for CPUs |
| `dlu_mmdet::NAME` is a config | mmengine knows its own packages alone | mmengine reads entry points |
| mmdet's `DetVisualizationHook` is the one of :mod:`~dlu_mmdet.visualization.detection_hook` | boxes lie on the image that was loaded | mmdet draws what its pipeline loaded |

The last is registered with its class, since visualization imports this package. In
:func:`~dlu_mmdet.engine.build_runner` (:func:`use_safe_loaders`,
:func:`patch_pipeline_errors`). The first row also applies in the commands and in
:func:`~dlu_mmdet.engine.load_detector`:

| what | why | may go when |
|---|---|---|
| checkpoints and pickles are loaded without running code | files from others | mmengine loads with `weights_only` |
| errors of data pipelines name the image | mmcv's do not | mmcv's do |

Elsewhere, since they add to a registry: the operators give their formulas to the FLOP
counters of torch and mmengine (``ops/flops.py``), the necks and heads register themselves,
and ``safe_loading.py`` replaces `torchvision://` where torchvision is missing.
"""  # noqa: E501

from __future__ import annotations

import mmcv.ops
import mmcv.transforms
import mmengine
import mmengine.dataset
from mmdet.datasets import CocoDataset, OpenImagesChallengeDataset
from mmdet.evaluation.metrics import coco_metric, lvis_metric, voc_metric
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import register_handler
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..datasets import coco_io
from ..datasets.transforms import apply_all
from ..necks import NECKS
from ..upsamplers.carafe import CARAFEPack
from ..upsamplers.dlu import DLUPack
from ..utils.torch_compat import allow_types
from . import safe_loading


class AnyDeviceCARAFEPack(CARAFEPack, mmcv.ops.CARAFEPack):
    """mmcv's own operator on CUDA, this package's elsewhere."""

    def feature_reassemble(self, x: Tensor, mask: Tensor) -> Tensor:
        """Reassemble x (N, C, H, W) with masks (N, G*K*K, s*H, s*W)."""
        if x.is_cuda:
            return mmcv.ops.CARAFEPack.feature_reassemble(self, x, mask)
        return super().feature_reassemble(x, mask)


def patch_at_import() -> None:
    """Apply the patches that MMDetection's own tools need; see above."""
    allow_types(safe_loading.SAFE_TYPES)
    # data sets of the users' own that derive from mmdet's have them too
    CocoDataset.COCOAPI = coco_io.COCO
    coco_metric.COCO = coco_io.COCO
    coco_metric.COCOeval = coco_io.COCOeval
    coco_metric.COCOevalMP = coco_io.COCOevalMP
    for metric in (coco_metric, lvis_metric, voc_metric):
        metric.eval_recalls = coco_io.eval_recalls
    # under mmcv's own name, so that configs made for it run on a CPU too
    mmengine.MODELS.register_module('carafe', force=True, module=AnyDeviceCARAFEPack)
    mmengine.MODELS.register_module('dlu', force=True, module=DLUPack)
    # by the name of a module, not of a distribution, mmengine finds the folder of an
    # editable install too
    MODULE2PACKAGE[NECKS.scope] = __name__.partition('.')[0]


def use_safe_loaders() -> None:
    """Make mmengine and mmdet load files without running code in them.

    This covers checkpoints at any address and the .pkl, .yaml and .np files of data
    sets. Addresses of loaders that the user registered are refused.
    """
    CheckpointLoader._get_checkpoint_loader = staticmethod(safe_loading.safe_loader)
    register_handler(['pkl', 'pickle'])(safe_loading.SafePickles)
    register_handler(['yaml', 'yml'])(safe_loading.SafeYAML)
    OpenImagesChallengeDataset._get_relation_matrix = safe_loading.read_relations


def patch_pipeline_errors() -> None:
    """Wrap the pipelines of mmengine's data sets and of mmcv.

    Errors of transforms then name the image file, and an image that no transform
    resizes has a scale factor of 1.
    """
    for owner, name in (
        (mmengine.dataset.Compose, '__call__'),
        (mmcv.transforms.Compose, 'transform'),
    ):
        setattr(owner, name, lambda self, data: apply_all(self.transforms, data))
