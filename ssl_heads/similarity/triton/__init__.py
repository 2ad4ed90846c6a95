"""Fused kernels for CUDA and ROCm devices.

Importing this package imports nothing else. Its modules import Triton, so the engine imports them when a call needs
them: ``operators`` is the similarity with gradients, ``rowwise`` the prologue and epilogue, ``reduce`` and
``differentiate`` are the passes on plain tensors.
"""
