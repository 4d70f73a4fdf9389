"""Sweep folders in buckets of an object store, such as ``s3://bucket/sweeps/NAME``."""
