"""Where the project lies, whatever the depth of the test that asks."""

from pathlib import Path

PROJECT = Path(__file__).parents[1]
CONFIGS = PROJECT / "configs"
SHARED = PROJECT.parent / "shared"
"""Data beside the project, which a user does not have."""
