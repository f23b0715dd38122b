"""A sweep's ledger in MLflow: its parent run, its plan, who claims a trial and how attempts end."""
