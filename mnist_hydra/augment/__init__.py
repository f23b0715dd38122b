"""Random changes to batches of images, each a pure function of the images and a seed."""
