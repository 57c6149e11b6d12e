"""Triton kernels. Importing a module here needs Triton but no GPU; running an engine imports none of them."""
