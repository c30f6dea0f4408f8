"""A folder for NVIDIA DeepStream: graphs, build.sh, class names, and the configuration of Gst-nvinfer.

nvinfer computes ``net-scale-factor * (pixel - offset)``, with an offset for each channel and one scale for
all. It takes what comes out for probabilities. So each graph here has two nodes more than the run's: one in
front, which evens out the channels' deviations where they differ, and a softmax behind.

nvinfer would build an engine from the graph, but without a calibration file it falls back to FP16. So the
configuration names ``model.plan``, which build.sh makes on the device, as in a bundle.

Sources: the page "Gst-nvinfer" of NVIDIA's DeepStream documentation (keys, the formula, label files);
``gstnvinfer_property_parser.h`` (keys); ``nvdsinfer_model_builder.cpp`` ("INT8 calibration file not
specified. Trying FP16 mode."); ``ClassifyPostprocessor`` of nvdsinfer (softmax, and labels in one line
between semicolons). Nothing of it was run here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobileone_q.data.preprocess import Preprocessing
from mobileone_q.engines import BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.files import write_text
from mobileone_q.names import Precision
from mobileone_q.runs.bundles.bundle import labels
from mobileone_q.runs.bundles.triton import copy_engine_files
from mobileone_q.runs.engines.graphs import build_options
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.staging import new_folder

ENGINE = "model.plan"
CONFIG = """# Written by mobileone-q. Keys: "Gst-nvinfer" in NVIDIA's DeepStream documentation.
# Run ./build.sh first: it makes {engine}. Frames are stretched to the network's input: nvinfer has no
# center crop. This network was calibrated on images whose shorter side was scaled to {resize} pixels, of
# which the middle {crop}x{crop} were kept.
[property]
gpu-id=0
gie-unique-id=1
process-mode=1
network-type=1
network-mode={mode}
model-engine-file={engine}
batch-size={batch}
infer-dims=3;{crop};{crop}
model-color-format=0
net-scale-factor={scale!r}
offsets={offsets}
maintain-aspect-ratio=0
scaling-filter=1
output-blob-names=probabilities
labelfile-path=labels.txt
classifier-threshold=0.0
{dla}"""
MODES = {"fp32": 0, "int8": 1, "fp16": 2}  # nvinfer's numbers


def write_deepstream(run: RunFolder, folder: Path, precision: Precision, options: BuildOptions) -> str:
    """Fill a new or empty folder for one precision; returns what to do with it, in words.

    The folder appears whole or not at all.

    Raises:
        RunError: the folder already holds something, or a file of the run has changed.
        EngineError: the network is not a classifier of images, its graph takes pixels, or TensorRT cannot
            run it.
        FileError: the folder cannot be written to.
    """
    manifest, arch = run.read_manifest(), run.load_fused().arch
    if manifest.preprocessing is None or arch.task != "classify":
        raise EngineError(f"{run.path}: nvinfer's configuration here is for classifiers of images alone")
    scale, factors = channel_scales(manifest.preprocessing)
    settled = build_options(run, precision, options)
    if settled.calibration_cache and any(factor != 1 for factor in factors):
        raise EngineError(
            f"{run.path}: nvinfer has one scale for all channels, and what evens them out would take the "
            "input's scale from the calibration cache; calibrate with --target dla-qdq, or for the GPU"
        )
    with new_folder(folder, folder.name) as place:
        for graph in copy_engine_files(run, place.path, precision, options):
            adapt_graph(graph, factors)
        names = (name.replace(";", ",") for name in labels(manifest, arch.num_classes))
        write_text(place.path / "labels.txt", ";".join(names) + "\n")
        core = settled.dla_core
        config = CONFIG.format(
            engine=ENGINE,
            resize=manifest.preprocessing.resize,
            crop=manifest.preprocessing.crop,
            mode=MODES[precision],
            batch=settled.batch[2],
            scale=scale,
            offsets=";".join(repr(round(255 * mean, 6)) for mean in manifest.preprocessing.mean),
            dla="" if core is None else f"enable-dla=1\nuse-dla-core={core}\n",
        )
        write_text(place.path / "config_infer.txt", config)
    return f"{folder}: copy it to the device, then ./build.sh, and nvinfer config-file-path=config_infer.txt"


def channel_scales(preprocessing: Preprocessing) -> tuple[float, tuple[float, ...]]:
    """nvinfer's one scale for pixels of 0 to 255, and what each channel is then to be multiplied by."""
    common = sum(preprocessing.std) / len(preprocessing.std)
    return 1 / (255 * common), tuple(common / std for std in preprocessing.std)


def adapt_graph(path: Path, factors: tuple[float, ...]) -> None:
    """Put nvinfer's two nodes into a graph's file: the channels' factors in front, a softmax behind.

    Raises:
        EngineError: the graph takes pixels in another form than nvinfer gives them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load(path)
    graph = proto.graph
    if graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise EngineError(
            f"{path.name} takes uint8 pixels, and nvinfer gives floats; calibrate without --input uint8"
        )
    nodes = list(graph.node)
    if any(factor != 1 for factor in factors):
        values = np.asarray(factors, np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(values, "channels/factors"))
        for node in nodes:
            node.input[:] = ["channels/scaled" if name == "input" else name for name in node.input]
        nodes.insert(
            0, helper.make_node("Mul", ["input", "channels/factors"], ["channels/scaled"], "channels")
        )
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "probabilities", axis=-1))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output[0].name = "probabilities"
    onnx.save(onnx.shape_inference.infer_shapes(proto, strict_mode=True), path)
