"""Exact attention, 4-bit language models, tensor clustering and tensor regression.

Each system is a room of its own: :mod:`tesseral.attention`,
:mod:`tesseral.quantization`, :mod:`tesseral.llm`, :mod:`tesseral.datasets`, over the
multilinear algebra of :mod:`tesseral.core`. Importing this module imports none of them.
"""


def __getattr__(name: str) -> str:
    """Return the version that was installed, once somebody asks: reading it takes a while."""
    if name != "__version__":
        raise AttributeError(f"module 'tesseral' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tesseral")
    except PackageNotFoundError:  # sources on the path, nothing installed
        return "0+unknown"
