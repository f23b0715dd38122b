"""Hydra-configured experiment sweeps for small vision models, tracked in MLflow."""

__version__ = "0.1.0"
