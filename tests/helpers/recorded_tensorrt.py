"""A stand-in for TensorRT made from the names recorded of one version, and nothing else.

Asking for a class or member that the version lacks raises AttributeError, as the real package
does. Overriding a method that a version's interface does not have raises too: the real one would
never call it, in silence.
"""

from __future__ import annotations

import json

VERSIONS = ("8.5.2", "8.6.1", "10.3.0", "10.13.3", "10.16.1", "11.1.0", "rtx-1.7.1")
ENUMS = ("Flag", "Type", "Verbosity", "Capability", "Level", "Format", "Mode")
NO_NAMES_RECORDED = ("ILogger",)  # its trampoline is not in the source that was read, from 10.3 on
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("INetworkDefinition", "get_input"): "ITensor",
}
VALUES = {
    "build_serialized_network": b"engine",
    "serialize": b"timings",
    "get_engine_information": '{"Layers": [], "Bindings": []}',
}
PROPERTIES = {
    "num_DLA_cores": 2, "num_errors": 0, "shape": (-1, 3, 32, 32), "num_optimization_profiles": 2,
    "active_optimization_profile": 0,
}  # fmt: skip


class Value(int):
    """A member of an enumeration."""

    def __new__(cls, number, name):
        value = super().__new__(cls, number)
        value.name = name
        return value


class Recorded:
    """``trt.calls`` lists the methods called, ``trt.set`` the attributes set (name to value),
    ``trt.flags`` the builder's flags set and the network's, ``trt.used`` every name asked for.
    """

    def __init__(self, version, folder):
        path = folder / "tensorrt-api" / f"{version}.json"
        self.classes = {
            name: set(members) for name, members in json.loads(path.read_text())["classes"].items()
        }
        self.__name__ = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
        self.__version__ = version.removeprefix("rtx-")
        self.calls, self.set, self.used, self.flags = [], {}, set(), set()
        self.can_deserialize = True

    def __getattr__(self, name):
        if name.startswith("__") or name not in self.classes:
            raise AttributeError(f"{self.__name__} {self.__version__} has no {name}")
        return self._make(name)

    def without(self, name, member):
        """Forget one recorded name."""
        self.classes[name] = self.classes[name] - {member}

    def check(self, name, member):
        if member.startswith("__") or member not in self.classes[name]:
            raise AttributeError(f"{self.__name__} {self.__version__}: {name} has no {member}")
        self.used.add((name, member))

    def _make(self, name):
        recorded, is_enum = self, name.endswith(ENUMS)

        class Meta(type):
            def __getattr__(cls, member):
                recorded.check(name, member)
                return Value(sorted(recorded.classes[name]).index(member), member) if is_enum else cls

        class Standin(metaclass=Meta):
            def __init__(self, *args):
                pass

            def __init_subclass__(cls):
                if name not in NO_NAMES_RECORDED:
                    for member in vars(cls):
                        if not member.startswith("_"):
                            recorded.check(name, member)

            def __setattr__(self, member, value):
                if type(self) is Standin:
                    recorded.check(name, member)
                    recorded.set[f"{name}.{member}"] = value
                object.__setattr__(self, member, value)

            def __getattr__(self, member):
                recorded.check(name, member)
                if member in PROPERTIES:
                    return PROPERTIES[member]

                def call(*args):
                    recorded.calls.append(f"{name}.{member}")
                    if member == "set_flag":
                        recorded.flags.add(args[0].name)
                    if member == "create_network":
                        known = sorted(recorded.classes["NetworkDefinitionCreationFlag"])
                        recorded.flags |= {flag for bit, flag in enumerate(known) if args[0] >> bit & 1}
                    if member == "deserialize_cuda_engine" and not recorded.can_deserialize:
                        return None
                    if (name, member) in RETURNS:
                        return recorded._make(RETURNS[name, member])()
                    return (2, 10) if member == "get_tensor_shape" else VALUES.get(member, True)

                return call

        return Standin
