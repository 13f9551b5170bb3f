"""Everything whence raises on purpose. Each message says what was given, what was expected and what to do.

WhenceError
├── ModelError              the model cannot be explained as it stands
│   ├── TrainingModeError   dropout and batch norm would disturb the explanation
│   ├── OpaqueError         a scripted, exported or hand-written autograd part cannot be seen into
│   └── UnknownFunctionError  a torch function on the path has no known treatment
├── InputError              inputs of the wrong kind, shape or content
├── TargetError             a target that is not there
├── RuleError               a rule or method configured against its definition
├── SelectorError           a selector or layer name that matches nothing
├── LoadError               a model, weights or image file that cannot be read
└── MissingPackageError     an optional package is not installed
"""


class WhenceError(Exception):
    """The root of the hierarchy: `except whence.errors.WhenceError` catches them all."""


class ModelError(WhenceError):
    """The model cannot be explained as it stands."""


class TrainingModeError(ModelError):
    """The model, or a part of it, is in training mode."""


class OpaqueError(ModelError):
    """A part of the model hides its torch functions."""


class UnknownFunctionError(ModelError):
    """A nonlinear torch function without a known treatment lies between input and output."""


class InputError(WhenceError, ValueError):
    """The inputs are of the wrong kind, shape or content."""


class TargetError(WhenceError, ValueError):
    """The target is not one of the model's outputs."""


class RuleError(WhenceError, ValueError):
    """A rule or a method is configured against its definition."""


class SelectorError(WhenceError, LookupError):
    """A selector or a layer name matches nothing in the model."""


class LoadError(WhenceError):
    """A model, a weights file or an image cannot be read."""


class MissingPackageError(WhenceError, ImportError):
    """An optional package is not installed."""
