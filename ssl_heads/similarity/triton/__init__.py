"""Fused kernels for CUDA and ROCm. Importing this package does not import Triton; `launch` and `rowwise` do."""
