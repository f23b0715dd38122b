"""Random changes to batches of images; `pipeline.py` builds them from a configuration."""
