"""The version, alone in a module that packaging reads without importing anything else."""

__version__ = "0.2.0"
