"""The training step of the built-in architectures on a CPU, compiled for it."""
