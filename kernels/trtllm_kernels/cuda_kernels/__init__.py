"""Kernels in CUDA C++, for where Triton's compiler leaves too much of the GPU unused: `.cu` files, compiled by `nvrtc.py`."""
