"""How commands are read, started, refused and printed: Hydra's grammar, one line, exit code 2."""
