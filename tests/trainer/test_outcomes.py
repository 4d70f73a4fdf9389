"""Which errors say that memory is used up, and which that the GPU answers its process no more: by libraries' texts."""

import errno

import pytest
import torch
from torch.distributed import DistBackendError

from trainer.engine import DeviceFault
from trainer.models.ranks import by_lost_rank
from trainer.outcomes import device_fault, ended_by, out_of_memory

# What c10/cuda/CUDAException.cpp appends to nearly all errors of the CUDA runtime.
ASYNCHRONOUS = (
    "\nSearch for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more"
    " information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below"
    " might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to"
    " enable device-side assertions.\n"
)


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 23.41 GiB"),
    torch.AcceleratorError(f"CUDA error: out of memory{ASYNCHRONOUS}"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, computeDesc, …)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("cuDNN Frontend error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    DistBackendError(
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled cuda error (run with"
        " NCCL_DEBUG=INFO for details), NCCL version 2.26.2\nncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 2 MB, max allowed: 9.07 GB)."),
    RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830, please report a bug to'
        " PyTorch."
    ),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
LASTING = [
    *(
        torch.AcceleratorError(f"CUDA error: {said}{ASYNCHRONOUS}")
        for said in (
            "an illegal memory access was encountered",
            "the launch timed out and was terminated",
            "device-side assert triggered",
            "hardware stack error",
            "an illegal instruction was encountered",
            "misaligned address",
            "operation not supported on global/shared address space",
            "invalid program counter",
            "unspecified launch failure",
            "uncorrectable ECC error encountered",
            "uncorrectable NVLink error detected during the execution",
        )
    ),
    torch.AcceleratorError("HIP error: unspecified launch failure"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    DistBackendError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 'an illegal memory access …'"),
]
UNCLEAR = [  # these leave the device as it was, or come of one that is lost
    torch.AcceleratorError(f"CUDA error: unknown error{ASYNCHRONOUS}"),
    torch.AcceleratorError(f"CUDA error: invalid argument{ASYNCHRONOUS}"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
OTHERS = [
    ValueError("an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376."),
    RuntimeError("a pointer with a misaligned address"),  # nothing of a GPU
    OSError(errno.ENOENT, "No such file"),
]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that was used; what is put into the list, it raises when it is waited for."""
    says: list[str] = []

    def synchronize() -> None:
        if says:
            raise torch.AcceleratorError(says[0])

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return says


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:50])
def test_memory_that_ran_out_is_told_by_every_library_and_is_no_fault_of_the_device(
    error: Exception, device: list[str]
) -> None:
    assert out_of_memory(error)
    assert device_fault(error) is None
    assert ended_by(error, "t0000", 3).state == "out_of_memory"
    assert not by_lost_rank(error), "no other process is to be blamed"


def test_the_host_says_in_words_of_its_own_that_it_has_no_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert out_of_memory(raised.value)


@pytest.mark.parametrize("error", LASTING, ids=lambda error: str(error)[:50])
def test_an_error_after_which_the_device_answers_no_more_ends_no_trial(error: Exception) -> None:
    assert not out_of_memory(error)
    with pytest.raises(DeviceFault, match=str(error).splitlines()[0][:30].replace("[", "\\[")):
        ended_by(error, "t0000", 3)
    assert not by_lost_rank(error)


@pytest.mark.parametrize("error", UNCLEAR, ids=lambda error: str(error)[:50])
def test_whether_any_other_error_of_a_library_is_lasting_is_told_by_the_device(
    error: Exception, device: list[str]
) -> None:
    assert device_fault(error) is None
    assert ended_by(error, "t0000", 3).trial_id == "t0000"
    device.append("CUDA error: unknown error")
    assert isinstance(device_fault(error), DeviceFault)
    assert not out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_errors_of_a_trial_are_its_own_and_the_device_is_not_asked(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: 1 / 0)
    assert not out_of_memory(error)
    assert device_fault(error) is None
    assert ended_by(error, "t0000", 3).state == "failed"
