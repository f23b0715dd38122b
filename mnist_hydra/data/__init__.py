"""MNIST-format data: found or fetched, verified, loaded and split (`load.load_dataset`)."""
