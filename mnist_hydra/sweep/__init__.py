"""Sweeps: a ledger in MLflow, workers that pull trials from it, and what is shown of them."""
