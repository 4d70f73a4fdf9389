"""How a trial ends other than by completing: diverged, out of memory, or failed; and which errors end none."""

import errno

import torch

from analysis.errors import LorasweepError, first_line
from analysis.folder import State, disk_fault
from trainer.engine import DeviceFault, Ended

# What libraries say of memory that is used up; compared without regard to case.
_NO_MEMORY = (
    # torch's allocators (CUDA, HIP, MPS, XPU); "CUDA error: …" of the runtime (c10/cuda/CUDAException.cpp); "CUDA
    # driver error: …" of expandable segments (ATen/cuda/Exceptions.h); Triton's, and NCCL's "Cuda failure '…'"
    "out of memory",
    # torch's allocator on a CPU, which says one or the other (c10/core/impl/alloc_cpu.cpp)
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    # of cuBLAS and cublasLt, rocBLAS, cuSPARSE, cuSOLVER, cuDNN 8 (QwenLM/Qwen3#873, pytorch#20123)
    "_status_alloc_failed",
    # of cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_HOST_… and …_DEVICE_ALLOCATION_FAILED
    "_allocation_failed",
    # torch's allocator, where it cannot ask for the figures of its message (pytorch#112377, #185240)
    "nvml_success ==",
)
# What cuBLAS says where its first handle finds no memory, and too where the device is lost (pytorch/serve#1993)
_NO_HANDLE = "cublas_status_not_initialized when calling `cublascreate"

# After these "the process must be terminated and relaunched": cudaError_t in
# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html, and what cudaGetErrorString says of them;
# HIP has the same words.
_LASTING = (
    "illegal memory access",  # 700
    "launch timed out and was terminated",  # 702
    "device-side assert triggered",  # 710
    "hardware stack error",  # 714
    "illegal instruction was encountered",  # 715
    "misaligned address",  # 716
    "operation not supported on global/shared address space",  # 717
    "invalid program counter",  # 718
    "unspecified launch failure",  # 719
    "uncorrectable ecc error",  # 214
    "uncorrectable nvlink error",  # 220
)
_OF_DEVICE = ("cuda", "hip error", "cublas", "cudnn", "nccl", "triton error")


class Diverged(Exception):
    """The loss, the gradient norm or a metric is no longer finite."""


class MetricMissing(LorasweepError):
    """A metric that the objective needs could not be computed, through no fault of the weights."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the host's memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return any(words in said for words in _NO_MEMORY) or (_NO_HANDLE in said and _device_answers())


def device_fault(error: BaseException) -> DeviceFault | None:
    """Whether after an error every further call to the GPU fails in this process, whatever trial it is for.

    CUDA reports an error of a kernel at some later call, and then at each one. An error that is not known to be of
    that kind is told by whether the device still answers.

    Args:
        error: of any kind.

    Returns:
        What to raise instead; None for other errors, out of memory among them.
    """
    if isinstance(error, DeviceFault):
        return error
    if not isinstance(error, RuntimeError) or out_of_memory(error):
        return None
    said = str(error).lower()
    if not isinstance(error, torch.AcceleratorError) and not any(words in said for words in _OF_DEVICE):
        return None
    if any(words in said for words in _LASTING) or not _device_answers():
        return DeviceFault(first_line(error)[:500])
    return None


def _device_answers() -> bool:
    """Whether the GPU still does what it is asked by this process; True where none was used."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def raise_device_fault(error: BaseException) -> None:
    """Raises DeviceFault where an error is one; nothing may be done with the device's tensors before that is known."""
    fault = device_fault(error)
    if fault is not None:
        raise fault from (None if fault is error else error)


def ended_by(error: BaseException, trial_id: str, step: int) -> Ended:
    """The end of a trial that raised an error.

    Args:
        error: that was raised.
        trial_id: of the trial.
        step: optimiser steps that it had done.

    Raises:
        BaseException: what is no trial's fault, and ends none: the error itself where it is a fault of the disk,
            DeviceFault where nothing works on the device any more.
    """
    if disk_fault(error):
        raise error
    raise_device_fault(error)
    first = first_line(error)[:500]
    if isinstance(error, Diverged):
        return Ended(trial_id, State.DIVERGED, str(error), step)
    if isinstance(error, (MemoryError, RuntimeError, OSError)) and out_of_memory(error):
        return Ended(trial_id, State.OUT_OF_MEMORY, first, step)
    name = "" if isinstance(error, LorasweepError) else f"{type(error).__name__}: "
    return Ended(trial_id, State.FAILED, name + first, step)
