"""Put an SSDLite head behind an INT8 backbone, in one ONNX file: detector.py RUN IMAGES [--output FILE].

RUN is a run of `mobileone-q calibrate --features 1,2,3 --no-head`, and IMAGES a folder. The head has random
weights from a fixed seed: it shows what INT8 does to a head's outputs, and detects nothing. Replace it with
one that you have trained on ``mobileone_q.Backbone.from_run``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import mobileone_q as mq  # before torch and onnxruntime

import numpy as np  # isort: skip
import onnx  # isort: skip
import onnxruntime  # isort: skip
import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

from mobileone_q.data.inputs import as_source

CLASSES, ANCHORS = 21, 6  # those of Pascal VOC, with the background; boxes at each position


class SSDLite(nn.Module):
    """For each map a depthwise and a pointwise convolution to scores, and two to boxes.

    Sandler et al., "MobileNetV2" (arXiv:1801.04381), section 6.2. Gives ``scores`` (N, boxes, classes) and
    ``boxes`` (N, boxes, 4), all maps one behind the other.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.scores = nn.ModuleList(self._branch(width, ANCHORS * CLASSES) for width in channels)
        self.boxes = nn.ModuleList(self._branch(width, ANCHORS * 4) for width in channels)

    @staticmethod
    def _branch(width: int, outputs: int) -> nn.Sequential:
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        return nn.Sequential(depthwise, nn.ReLU6(), nn.Conv2d(width, outputs, 1))

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        def join(branches: nn.ModuleList, values: int) -> Tensor:
            parts = [branch(x).permute(0, 2, 3, 1) for branch, x in zip(branches, maps)]
            return torch.cat([part.reshape(part.shape[0], -1, values) for part in parts], 1)

        return join(self.scores, CLASSES), join(self.boxes, 4)


def normalized_head(backbone: nn.Module, images: Tensor) -> SSDLite:
    """A head of seed 0 whose first convolutions expect maps of the size that these images give."""
    torch.manual_seed(0)
    maps = backbone(images)
    head = SSDLite(tuple(x.shape[1] for x in maps)).eval()
    with torch.no_grad():
        for branches in (head.scores, head.boxes):
            for branch, x in zip(branches, maps):
                branch[0].weight /= x.std()
    return head


def head_graph(head: SSDLite, maps: tuple[Tensor, ...], names: list[str]) -> onnx.ModelProto:
    """The head as ONNX, with a free batch size."""
    buffer, outputs = io.BytesIO(), ["scores", "boxes"]
    torch.onnx.export(
        head, maps, buffer, input_names=names, output_names=outputs, opset_version=17, dynamo=False,
        dynamic_axes={name: {0: "batch"} for name in (*names, *outputs)},
    )  # fmt: skip
    graph = onnx.load_from_string(buffer.getvalue())
    graph.ir_version = 8  # as the backbone's
    return onnx.compose.add_prefix(graph, "head/", rename_inputs=False, rename_outputs=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=50, help="images to measure on")
    parser.add_argument("--output", type=Path, default=Path("detector.onnx"))
    args = parser.parse_args()

    run = mq.open_run(args.run)
    backbone = mq.Backbone.from_run(run, "fp32")
    source = as_source(args.images, backbone.arch, run.read_manifest().preprocessing)
    images = np.stack([source.read(index) for index in range(min(args.count, len(source)))])
    few = torch.from_numpy(images[:4])
    names = list(backbone.arch.map_names.values())
    head = head_graph(normalized_head(backbone, few), backbone(few), names)
    outputs = {}
    for precision in ("fp32", "int8"):
        graph = onnx.load(run.graph(precision))
        # The head may have learned its own scale: nothing of the backbone's graph changes for it.
        merged = onnx.compose.merge_models(graph, head, io_map=[(name, name) for name in names])
        onnx.checker.check_model(merged, full_check=True)
        if precision == "int8":
            onnx.save(merged, args.output)
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(
            merged.SerializeToString(), options, disabled_optimizers=["WeightBiasQuantization"]
        )
        parts = [session.run(["scores", "boxes"], {"input": x[None]}) for x in images]
        outputs[precision] = [np.concatenate(each) for each in zip(*parts)]
    print(f"{args.output}: {len(merged.graph.node)} nodes, INT8 backbone and head in one file")
    for name, fp32, int8 in zip(("scores", "boxes"), outputs["fp32"], outputs["int8"]):
        noise = np.square(fp32 - int8, dtype=np.float64).sum()
        snr = 10 * np.log10(np.square(fp32, dtype=np.float64).sum() / noise)
        print(f"{name:8} {fp32.shape[1:]}: SNR {snr:.1f} dB, INT8 backbone beside FP32")


if __name__ == "__main__":
    main()
