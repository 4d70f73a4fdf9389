"""What a device worker finds wrong with its node, before torch is imported. Every sentence names the node."""

from analysis.errors import FolderError, LorasweepError
from sweeps.checks.local_files import differing
from sweeps.driver.device_facts import NodeFaults, StartCheck
from sweeps.process.fingerprint import differences, fingerprint


def node_faults(node: str, check: StartCheck) -> NodeFaults:
    """Compare code, sweep folder and files with those of the driver.

    Args:
        node: this one's name.
        check: of the driver.
    """
    return NodeFaults(_code(node, check), _folder(node, check), differing(node, check.files))


def no_gpu(node: str, version: str, built: str | None) -> str:
    """A sentence on a worker that Ray gave a GPU, and whose torch sees none.

    Args:
        node: its name.
        version: of torch.
        built: the CUDA or ROCm version that torch was built for; None for the CPU build.
    """
    if built is None:
        why = "it is the CPU build. Install the other one there: make install TORCH=cuda"
    else:
        why = f"it was built for {built}. Look at the driver there: nvidia-smi"
    return (
        f"node {node} has a GPU for Ray, and torch {version} does not see it: {why}; or start Ray there with"
        " --num-gpus=0. resources.gpus_per_trial=0 trains on CPUs."
    )


def _code(node: str, check: StartCheck) -> str:
    try:
        here = fingerprint()
    except LorasweepError as error:  # the packages are not together
        return f"node {node}: {error}"
    different = differences(check.code, here)
    if not different:
        return ""
    return (
        f"node {node} runs other code than this machine: {different} (there in {here.root}, here in {check.code.root})."
        " Bring that node's checkout and .venv, or its image, to the state of this one, and start Ray there again."
    )


def _folder(node: str, check: StartCheck) -> str:
    try:
        check.probe.answer(node, check.answer)
    except FolderError as error:
        return str(error)
    return ""
