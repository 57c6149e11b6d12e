"""Workloads: what is asked of an inference server, and when. Lengths, arrivals, traces, structure, datasets; no torch, no clock."""

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.request import RequestSpec, Workload

__all__ = ["RequestSpec", "Workload", "WorkloadError"]
