"""Workflows: steps in their order, in one file; run here, on an engine, or on a cluster that others keep."""
