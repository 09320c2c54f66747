"""The version: read by the build, by ``bishare --version`` and as ``bishare.__version__``."""

__version__ = "0.1.0"
