"""All that is said to MLflow and read back: the store, the spool before it, the tracker."""
