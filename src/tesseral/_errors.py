"""Every exception and warning the package raises on purpose.

Each error derives from :class:`TesseralError` and from the builtin that a caller would
expect, so both ``except TesseralError`` and ``except ValueError`` work.
"""


class TesseralError(Exception):
    """Base of all errors raised on purpose."""


class ShapeError(TesseralError, ValueError):
    """An array has a shape that does not fit."""


class DtypeError(TesseralError, TypeError):
    """An array has a data type that does not fit."""


class ParameterError(TesseralError, ValueError):
    """An argument or a configuration value is not one of those allowed."""


class BackendError(TesseralError, RuntimeError):
    """No backend can run a call, or the one asked for by name cannot."""


class MissingExtraError(TesseralError, ImportError):
    """An optional dependency is needed and not installed."""


class DataError(TesseralError, ValueError):
    """A data file or a text is missing, damaged or too short for what is asked."""


class CheckpointError(TesseralError, ValueError):
    """A model directory is missing, damaged, or of a kind that cannot be read."""


class UnsupportedModelError(TesseralError, ValueError):
    """A model's architecture fits none of the known layouts."""


class OutputExistsError(TesseralError, FileExistsError):
    """An output would replace something that is already there."""


class CalibrationError(TesseralError, ArithmeticError):
    """Calibration met a non-finite loss."""


class InformationError(TesseralError, ArithmeticError):
    """Data do not tell enough of parameters to say how uncertain they are."""


class DistributedError(TesseralError, RuntimeError):
    """A rank of a group of processes failed, was too slow, or does not fit the others."""


class TesseralWarning(UserWarning):
    """Base of all warnings raised on purpose."""


class MemoryWarning(TesseralWarning):
    """A run may need more memory than there is."""


class PrecisionWarning(TesseralWarning):
    """A calculation was done again in a longer type."""


class ConvergenceWarning(TesseralWarning):
    """An iteration stopped before its stopping rule was met."""


class CollinearityWarning(TesseralWarning):
    """Covariates depend linearly on one another."""


class SeparationWarning(TesseralWarning):
    """The likelihood has no maximum: covariates separate the values of the response."""


class MissingSliceWarning(TesseralWarning):
    """Nothing was observed of a slice of a tensor."""


class EvidenceWarning(TesseralWarning):
    """The data cannot support the answer that was asked for."""
