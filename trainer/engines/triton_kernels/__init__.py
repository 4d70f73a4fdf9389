"""Kernels for GPUs in Triton's language, each of which does in one launch what takes PyTorch's operators many."""
