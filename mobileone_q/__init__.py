"""Quantize MobileOne to INT8 for edge devices, from Python.

    import mobileone_q as mq
    model = mq.load("mobileone_s0.pth.tar", arch="s0")          # branches or fused
    result = mq.calibrate(model, "calib/", target="tensorrt")   # result.quantized, result.fused
    run = result.save("runs/s0", evaluate_on="val/")            # graphs, manifest, report
    engine = run.build("int8", backend="onnxruntime")
    logits = engine(images)                                     # normalized float32 (N, 3, H, W)

The command line is made of the same functions. The names in ``__all__`` are the public ones; every
other module may move. They are resolved when they are first used (scientific-python.org's SPEC 1),
so importing this package brings in no torch.

Importing it before torch also makes OpenMP threads that wait spin for about a tenth of a millisecond
and then sleep, unless the environment variable ``OMP_WAIT_POLICY`` says otherwise. On a machine with other
work to do, threads that spin on slow torch down several times. Threads that sleep at once cost a quarter of
a network's speed, since many of its operations are shorter than waking up. OpenMP reads its variables
once, when torch is imported (GNU libgomp's manual, "Environment Variables").

It also turns telemetry off. ONNX Runtime otherwise writes a device id under the user's cache folder and
looks up a host of its maker; it reads ``ORT_DISABLE_TELEMETRY`` once, when it is imported. The Hugging
Face hub's client, which ``accelerate`` brings, reads ``HF_HUB_DISABLE_TELEMETRY``. A value that the user
has set is left alone.
"""

import os
import sys
import warnings

import lazy_loader

if "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ:
    warnings.warn(
        "onnxruntime was imported before mobileone_q, with its telemetry on; "
        "import mobileone_q first, or set ORT_DISABLE_TELEMETRY=1",
        stacklevel=2,
    )
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
