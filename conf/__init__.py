"""The configuration groups, shipped with the package as `mnist_hydra.conf`."""
