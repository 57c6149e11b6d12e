"""Errors that a user of the kernels can cause. Each message is one sentence: what was wrong, where, and what to do."""


class KernelError(ValueError):
    """An op, expression, tactic, compilation or launch cannot be carried out as requested."""
