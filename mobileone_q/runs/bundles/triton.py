"""A model folder for NVIDIA Triton Inference Server: the graph, ``config.pbtxt``, and the class names.

A run for target ``onnxruntime`` is served by Triton's ONNX Runtime backend as it is. Any other run is served
by its TensorRT backend, which loads an engine built on the server, so the folder of version 1 has a bundle's
build.sh that makes ``model.plan``.

Sources: ``model_config.proto`` of triton-inference-server/common for the fields, and the pages "Model
Repository" and "Model Configuration" of Triton's user guide for the layout.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mobileone_q.engines import BuildOptions
from mobileone_q.errors import EngineError
from mobileone_q.files import write_text
from mobileone_q.names import BackendName, Precision
from mobileone_q.runs.bundles.bundle import copy_file, labels, write_bundle
from mobileone_q.runs.engines.graphs import build_options, input_form, write_graph
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.staging import new_folder

TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8"}  # by the number of an ONNX element type
FOR_THE_ENGINE = ("build.sh", "record.py", "int8.calib", "*.onnx")  # what a bundle's build needs of its files
CONFIG = """# Written by mobileone-q. Fields: model_config.proto of triton-inference-server/common.
name: {name}
backend: "{backend}"
max_batch_size: {batch}
input [
  {{
    name: "input"
    data_type: {type}
    dims: [ {dims} ]
  }}
]
output [
  {{
    name: "logits"
    data_type: TYPE_FP32
    dims: [ {outputs} ]
{labels}  }}
]
{batching}{instances}parameters {{
  key: "preprocessing"
  value {{ string_value: {preprocessing} }}
}}
"""


def write_triton(run: RunFolder, folder: Path, precision: Precision, options: BuildOptions) -> str:
    """Fill a new or empty model folder for one precision; returns what to do with it, in words.

    The folder appears whole or not at all. Its name is the model's.

    Raises:
        RunError: the folder already holds something, or a file of the run has changed.
        EngineError: TensorRT cannot run the run's INT8 graph, or cannot do so on what was asked for.
        FileError: the folder cannot be written to.
    """
    manifest, arch = run.read_manifest(), run.load_fused().arch
    backend = served_by(run, precision)
    is_ready = backend == "onnxruntime"
    with new_folder(folder, folder.name) as place:
        version = place.path / "1"
        if is_ready:
            form = input_form(run, options)
            graph = write_graph(run, precision, "fp32", backend, typed=True, form=form)
            copy_file(graph, version / "model.onnx")
        else:
            graph = copy_engine_files(run, version, precision, options)[0]
        config = _config(graph, folder.name, backend, build_options(run, precision, options).batch[2])
        if arch.task == "classify":
            write_text(place.path / "labels.txt", "\n".join(labels(manifest, arch.num_classes)) + "\n")
        write_text(place.path / "config.pbtxt", config)
    first = "" if is_ready else f"on the server, {folder}/1/build.sh builds the engine; then "
    start = f"start tritonserver --model-repository {folder.absolute().parent}"
    return f"{folder}: {first}{start}, or copy the folder into another repository"


def served_by(run: RunFolder, precision: Precision) -> BackendName:
    """The backend of Triton that a run's graph is for."""
    is_ready = run.read_manifest().target == "onnxruntime" and precision != "fp16"
    return "onnxruntime" if is_ready else "tensorrt"


def copy_engine_files(
    run: RunFolder, folder: Path, precision: Precision, options: BuildOptions
) -> list[Path]:
    """Copy what a bundle builds its engine from; returns the graphs, the one without FP16 parts first.

    Raises:
        EngineError, RunError, FileError: see :func:`mobileone_q.runs.bundles.bundle.write_bundle`.
    """
    if options.direct_input:
        raise EngineError("--direct-input is for a bundle: servers give engines floats; leave it out")
    with TemporaryDirectory() as aside:
        bundle = Path(aside) / folder.name
        # Servers run the first optimization profile, which must take their largest batch.
        write_bundle(run, bundle, precision, replace(options, static_profile=False))
        for pattern in FOR_THE_ENGINE:
            for path in sorted(bundle.glob(pattern)):
                copy_file(path, folder / path.name)
    (folder / "build.sh").chmod(0o755)
    return sorted(folder.glob("*.onnx"), key=lambda path: len(path.name))


def _config(graph: Path, name: str, backend: BackendName, batch: int) -> str:
    """The model's configuration, as protobuf text."""
    import onnx

    proto = onnx.load(graph, load_external_data=False)
    (given,), (made,) = proto.graph.input, proto.graph.output
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    is_classifier = len(made.type.tensor_type.shape.dim) == 2

    def dims(value: onnx.ValueInfoProto) -> str:
        return ", ".join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:])

    return CONFIG.format(
        name=json.dumps(name),
        backend=backend,
        batch=batch,
        type=TYPES[given.type.tensor_type.elem_type],
        dims=dims(given),
        outputs=dims(made),
        labels='    label_filename: "labels.txt"\n' if is_classifier else "",
        batching="dynamic_batching { }\n" if batch > 1 else "",
        # Where there is a GPU, Triton would take it, and this form of graph is for CPUs.
        instances="instance_group [ { kind: KIND_CPU } ]\n" if backend == "onnxruntime" else "",
        preprocessing=json.dumps(facts.get("preprocessing", "none: the input is normalized")),
    )
