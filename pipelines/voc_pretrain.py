#!/usr/bin/env python
"""COCO pretraining -> VOC-aug finetuning -> VOC trainval finetuning, as one chain on Ray.

Without arguments it draws the bundled sample, writes it as shards and runs all three stages on it, in a few minutes;
with a recipe it runs the stages of that recipe. The same command continues a run that was interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: Python put this folder first on the path, the packages are one above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import run
from pipelines.train import train

EXAMPLES = """\
examples:
  python -m pipelines.voc_pretrain                                   # the bundled sample
  python -m pipelines.voc_pretrain output=/data/runs head.rank=32    # the same, in another place, with another head
  python -m pipelines.voc_pretrain reconet/voc12_coco_resnet101s data=/data/shards backbone.weights=/weights/r101s.pth
  ray job submit --working-dir . -- python pipelines/voc_pretrain.py reconet/voc12_coco_resnet101s data=s3://BUCKET/shards
"""
if __name__ == "__main__":
    run(lambda: train(__doc__, default="sample", examples=EXAMPLES), resumes=True)
