"""Specifications of the dialect's ops, one family per module, named as in `references`. Importing this package registers them all."""

from trtllm_kernels.dialect.op_spec import OP_SPECS, OpSpec, Trait, register
from trtllm_kernels.discovery import import_modules

import_modules(__name__, __path__)

__all__ = ["OP_SPECS", "OpSpec", "Trait", "register"]
