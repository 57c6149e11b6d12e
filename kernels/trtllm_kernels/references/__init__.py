"""The dialect. Importing this package registers every op under `torch.ops.trtllm`; `OPS` lists them."""

from trtllm_kernels.dialect.registry import NAMESPACE, OPS, OpDef
from trtllm_kernels.launch import torch_ops as cuda_ops
from trtllm_kernels.references import attention, elementwise, gather, linear, norm, quantize, rope, sampling

cuda_ops.register()

__all__ = ["NAMESPACE", "OPS", "OpDef", "attention", "elementwise", "gather", "linear", "norm", "quantize", "rope", "sampling"]
