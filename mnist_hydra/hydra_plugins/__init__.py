"""What Hydra finds as `hydra_plugins.mnist_hydra`; it holds no logic of its own."""
