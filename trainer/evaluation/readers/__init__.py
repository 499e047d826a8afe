"""Annotations of the benchmarks in the files they are published in, as records: one module a format."""
