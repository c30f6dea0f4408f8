"""From a checkpoint to a measured INT8 engine: quickstart.py [WEIGHTS CALIBRATION EVALUATION]."""

import sys

import mobileone_q as mq  # before torch

sample = mq.sample.WEIGHTS, mq.sample_images("calibration"), mq.sample_images("evaluation")
weights, images, labelled_images = sys.argv[1:] or sample
model = mq.load(weights, arch="s0", image_size=None if sys.argv[1:] else 32)
run = mq.calibrate(model, images, target="onnxruntime").save(evaluate_on=labelled_images)
for precision in ("fp32", "int8"):
    run.build(precision, backend="onnxruntime").close()
accuracy, latency = run.read_report().accuracy, run.profile("onnxruntime")
assert accuracy is not None
print(f"{run.path}: drop {accuracy.drop_pts:.2f} points, {latency.speedup:.2f} times as fast")
