"""Kernels in CUDA C++, where the compiler of `triton_kernels` leaves too much of the chip unused: `.cu` files, compiled by `nvrtc.py`."""
