"""The dialect. Importing this package registers every op under `torch.ops.trtllm`; `OPS` lists them."""

from trtllm_kernels import cuda_ops
from trtllm_kernels.ops import attention, elementwise, gather, linear, norm, quantize, rope, sampling
from trtllm_kernels.ops.registry import NAMESPACE, OPS, OpDef

cuda_ops.register()

__all__ = ["NAMESPACE", "OPS", "OpDef", "attention", "elementwise", "gather", "linear", "norm", "quantize", "rope", "sampling"]
