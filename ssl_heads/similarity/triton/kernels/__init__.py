"""Kernels in Triton's language; the host files beside this folder launch them."""
