"""Maps of an INT8 backbone by the recipe: cosine similarity and signal-to-noise beside FP32.

    python benchmarks/backbone_study.py --weights mobileone_s0_fused.pth --data calib/ --eval-data others/

Recipes: the default; the few positions with massive activations counted in full, in the statistics alone
and in the mean errors too; ranges that clip nothing. Maps are those of the float32 simulation, after
stages 1, 2 and 3. Prints a Markdown table of mean and least cosine similarity and of the signal-to-noise
ratio in dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mobileone_q as mq

import torch  # isort: skip
from torch import Tensor

from calibrate.images import tensors
from calibrate.pipeline import calibrate
from calibrate.recipe import Recipe
from mobileone_q.data.sources import ImageFolder
from mobileone_q.evaluation.maps import MapSum
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.models.fused import FusedModel
from mobileone_q.models.quantized import QuantizedModel

STAGES = (1, 2, 3)
RECIPES = {
    "default": {},
    "`weigh_positions` off": {"weigh_positions": False},
    "`weigh_bias_errors` off too": {"weigh_positions": False, "weigh_bias_errors": False},
    "ranges `minmax` too": {"weigh_positions": False, "weigh_bias_errors": False, "range_method": "minmax"},
}


@torch.no_grad()
def judge(fused: FusedModel, quantized: QuantizedModel, images: list[Tensor]) -> list[str]:
    """A cell for each map: mean and least cosine similarity, signal-to-noise ratio in dB."""
    total = MapSum()
    for x in images:
        total.add(*({name: each.numpy() for name, each in net.maps(x).items()} for net in (fused, quantized)))
    return [f"{each.cosine:.4f}, {each.lowest:.3f}, {each.snr_db:.1f} dB" for each in total.result("")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("weights", "data", "eval-data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--target", default="tensorrt")
    parser.add_argument("--images", type=int, help="evaluation images  [default: all]")
    args = parser.parse_args()
    model = mq.load(args.weights, arch="s0").with_maps(STAGES, has_head=False).network
    fused = model if isinstance(model, FusedModel) else fuse_branches(model)
    calibration = mq.Batches.choose(ImageFolder(args.data), 200)
    images = list(tensors(mq.Batches.choose(ImageFolder(args.eval_data), args.images)))
    names = [f"`features{stage}`" for stage in STAGES]
    print(f"| recipe | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    for title, changes in RECIPES.items():
        quantized = calibrate(fused, calibration, Recipe(target=args.target, **changes))
        print(f"| {title} | {' | '.join(judge(fused, quantized, images))} |", flush=True)


if __name__ == "__main__":
    main()
