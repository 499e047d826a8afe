"""A stage of evaluation: a head on the trained encoder, fitted to a benchmark (docs/evaluation.md)."""
