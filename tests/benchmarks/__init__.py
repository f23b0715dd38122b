"""What the project's speed is argued with: `python -m tests.benchmarks.<name>`, see README.md."""
