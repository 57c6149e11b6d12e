"""Errors a user of the kernels can cause. Each carries one sentence: what was wrong, where, what to do."""


class KernelError(ValueError):
    """An op, expression, tactic, compilation or launch that cannot be carried out as asked."""
