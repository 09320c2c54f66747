"""Folders shipped with the package: beside the package in a clone, inside in an installed wheel."""

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """``configs`` or ``callbacks``: ``bishare/NAME`` in a wheel, ``NAME`` at the top of a clone."""
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
