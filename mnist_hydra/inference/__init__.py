"""A trained model at work: read back from where it was kept, asked for digits, and measured."""
