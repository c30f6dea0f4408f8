"""Everything that can go wrong for a user, as one tree.

    MobileOneQError
    ├── ArchitectureError     no such architecture, or one that cannot be built
    ├── CheckpointError       a weights file that is missing, broken, foreign or unsafe
    ├── ConfigError           a YAML file of options that cannot be used
    ├── OptionError           options of a command that do not go together
    ├── FusionError           branches that cannot be folded exactly
    ├── DataError             images: missing, unreadable, too few
    ├── CalibrationError      statistics or settings from which no grid can be made
    ├── ExportError           a model that the ONNX contract cannot hold
    ├── TrainingError         settings that cannot be trained by, or a training run gone wrong
    │   └── Interrupted       stopped by the user; saved, and can be resumed
    ├── EngineError           building, loading or running an engine
    ├── RunError              a run folder: missing, incomplete, or one that must not be overwritten
    ├── FileError             a file or folder that cannot be read or written
    └── MissingDependency     a package that is not installed here

Each message is one line: what, where, and how to mend it. The command line prints it and exits
with code 1; any other exception that reaches the user is a bug.
"""


def printable(text: str) -> str:
    """Text in one line: what does not print, such as a newline or a byte that is not UTF-8, is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class MobileOneQError(Exception):
    """Base of every error meant for the user; its message is one line whatever names stand in it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ArchitectureError(MobileOneQError):
    """No such architecture, or one that cannot be built."""


class CheckpointError(MobileOneQError):
    """A weights file that is missing, broken, foreign or unsafe."""


class ConfigError(MobileOneQError):
    """A YAML file of options that cannot be used."""


class OptionError(MobileOneQError):
    """Options of a command that do not go together."""


class FusionError(MobileOneQError):
    """Branches that cannot be folded exactly."""


class DataError(MobileOneQError):
    """Images that are missing, unreadable or too few."""


class CalibrationError(MobileOneQError):
    """Statistics or settings from which no quantization grid can be made."""


class ExportError(MobileOneQError):
    """A model that the ONNX contract cannot hold."""


class TrainingError(MobileOneQError):
    """Settings that cannot be trained by, or a training run gone wrong."""


class Interrupted(TrainingError):
    """Training was stopped by the user; it is saved and can be resumed."""


class EngineError(MobileOneQError):
    """An engine could not be built, loaded or run."""


class RunError(MobileOneQError):
    """A run folder that is missing, incomplete, or must not be overwritten."""


class FileError(MobileOneQError):
    """A file or folder that cannot be read or written."""


class MissingDependency(MobileOneQError):
    """A package that is not installed here."""
