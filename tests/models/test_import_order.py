"""Every module of the lower floors can be imported first: there is no circle among them."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import onnx, torch  # once, since they take seconds
import mobileone_q
rooms = ("architecture", "models", "export", "checkpoints", "backbone", "files", "yaml_files")
names = [module.name for module in pkgutil.walk_packages(mobileone_q.__path__, "mobileone_q.")]
names = [name for name in names if name.split(".")[1] in rooms]
for name in names:
    for loaded in [key for key in sys.modules if key.startswith("mobileone_q")]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
