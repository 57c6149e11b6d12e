"""The dialect in torch. Importing this package registers every op under `torch.ops.trtllm`; `OPS` lists them."""

from trtllm_kernels.dialect.registry import NAMESPACE, OPS, OpDef
from trtllm_kernels.discovery import import_modules
from trtllm_kernels.launch import torch_ops

import_modules(__name__, __path__)
for definition in OPS.values():
    torch_ops.register(definition)

__all__ = ["NAMESPACE", "OPS", "OpDef"]
