# The public face: what `import mobileone_q` offers. lazy_loader and type checkers read it.
from .backbone import Backbone as Backbone
from .data import sample as sample
from .data.batches import Batches as Batches
from .data.inputs import sample_images as sample_images
from .data.preprocess import Preprocessing as Preprocessing
from .engines import BuildOptions as BuildOptions
from .engines import Engine as Engine
from .errors import MobileOneQError as MobileOneQError
from .evaluation.latency import Latency as Latency
from .evaluation.metrics import Accuracy as Accuracy
from .report.schema import Manifest as Manifest
from .report.schema import Report as Report
from .runs.calibration import Recipe as Recipe
from .runs.calibration import calibrate as calibrate
from .runs.engines.predict import Prediction as Prediction
from .runs.model import Model as Model
from .runs.model import load as load
from .runs.result import Result as Result
from .runs.run import Run as Run
from .runs.run import open_run as open_run

__all__ = [
    "Accuracy",
    "Backbone",
    "Batches",
    "BuildOptions",
    "Engine",
    "Latency",
    "Manifest",
    "MobileOneQError",
    "Model",
    "Prediction",
    "Preprocessing",
    "Recipe",
    "Report",
    "Result",
    "Run",
    "calibrate",
    "load",
    "open_run",
    "sample",
    "sample_images",
]
__version__: str
