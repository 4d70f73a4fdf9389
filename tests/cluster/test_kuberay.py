"""`cluster/kuberay/`: manifests that KubeRay takes, and what they promise."""

import copy
import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.compose.compose import compose
from tests.cluster.kuberay_rules import broken_rules
from tests.cluster.kubernetes_schemas import ROOT, cluster_spec, document, documents, faults, groups

KINDS = [("rayjob.yaml", "RayJob"), ("raycluster.yaml", "RayCluster")]
ALL = [
    (path.name, it["kind"]) for path in sorted((ROOT / "cluster/kuberay").glob("*.yaml")) for it in documents(path.name)
]
REMOVED = "(removed)"  # in place of a value


def changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which one place, ``a.0.b``, holds something else, or nothing."""
    manifest = copy.deepcopy(manifest)
    *way, last = [int(it) if it.isdigit() else it for it in path.split(".")]
    place: Any = functools.reduce(lambda part, key: part[key], way, manifest)
    if value == REMOVED:
        del place[last]
    else:
        place[last] = value
    return manifest


# --- schemas


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_manifests_are_what_kuberays_schema_and_the_cores_want(name: str, kind: str) -> None:
    assert faults(document(name, kind)) == []


HEAD, WORKER = "headGroupSpec.template.spec", "workerGroupSpecs.0.template.spec"
MISTAKES = [  # path within the cluster, what is there then, what is said
    (f"{WORKER}.containers.0.volumeMounts.0.mountpath", "/shared", "'mountpath' was unexpected"),
    (f"{WORKER}.containers.0.resources.limit", {"cpu": "1"}, "'limit' was unexpected"),
    (f"{WORKER}.terminationGracePeriodSeconds", "60", "'60' is not of type 'integer'"),
    (f"{WORKER}.containers.0.envFrom.0.secretRef.optional", "yes", "'yes' is not of type 'boolean'"),
    (f"{HEAD}.volumes.0.persistentVolumeClaim", {"name": "lorasweep-shared"}, "'claimName' is a required property"),
    ("authOptions.mode", "Token", "'Token' is not one of ['disabled', 'token']"),
    ("autoscalerOptions.version", 2, "is not one of ['v1', 'v2']"),
    ("workerGroupSpecs.0.minReplica", 0, "'minReplica' was unexpected"),
    ("workerGroupSpecs.0.groupName", REMOVED, "'groupName' is a required property"),
    ("workerGroupSpecs.0.rayStartParams", {"num-cpus": 4}, "4 is not of type 'string'"),
]


@pytest.mark.parametrize(("path", "value", "said"), MISTAKES, ids=[path for path, *_ in MISTAKES])
def test_a_planted_mistake_is_found(path: str, value: Any, said: str) -> None:
    found = faults(changed(document("rayjob.yaml", "RayJob"), f"spec.rayClusterSpec.{path}", value))
    assert any(said in fault for fault in found), found


def test_planted_mistakes_in_the_cluster_that_stays_are_found() -> None:
    cluster = document("raycluster.yaml", "RayCluster")
    for path, value, said in (MISTAKES[0], MISTAKES[5]):
        assert any(said in fault for fault in faults(changed(cluster, f"spec.{path}", value)))


def test_a_planted_mistake_of_a_job_is_found() -> None:
    job = document("rayjob.yaml", "RayJob")
    assert any("'3' is not of type 'integer'" in it for it in faults(changed(job, "spec.backoffLimit", "3")))
    assert any("'backofLimit' was unexpected" in it for it in faults(changed(job, "spec.backofLimit", 3)))
    assert any("'label' was unexpected" in it for it in faults(changed(job, "metadata.label", {})))


def test_a_planted_mistake_outside_of_kuberays_kinds_is_found() -> None:
    claim, settings = document("storage.yaml", "PersistentVolumeClaim"), document("rayjob.yaml", "ConfigMap")
    assert any("'storageClass' was unexpected" in it for it in faults(changed(claim, "spec.storageClass", "nfs")))
    assert any("is not of type" in it for it in faults(changed(claim, "spec.accessModes", "ReadWriteMany")))
    assert any("is not of type" in it for it in faults(changed(settings, "data", {"sweep.yaml": {"seed": 1}})))


# --- rules


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_manifests_keep_the_rules_that_no_schema_says(name: str, kind: str) -> None:
    assert broken_rules(document(name, kind)) == []


C = "rayClusterSpec"
BREACHES = [
    ("shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished wants"),
    ("shutdownAfterJobFinishes", False, "Kueue wants shutdownAfterJobFinishes"),
    (C, REMOVED, "one of rayClusterSpec and clusterSelector"),
    ("clusterSelector", {"ray.io/cluster": "x"}, "clusterSelector goes with neither"),
    ("submissionMode", "InteractiveMode", "InteractiveMode goes without"),
    ("runtimeEnvYAML", "env_vars", "is a mapping"),
    (f"{C}.rayVersion", REMOVED, "tokens want rayVersion"),
    (f"{C}.rayVersion", "2.55.1", "priority is of the autoscaler v2, and of Ray 2.56"),
    (f"{C}.autoscalerOptions.version", "v1", "gpu-spot: idleTimeoutSeconds"),
    (f"{C}.{HEAD}.restartPolicy", "Always", "headGroupSpec: the autoscaler v2 wants"),
    (f"{C}.{WORKER}.restartPolicy", "OnFailure", "gpu-spot: the autoscaler v2 wants"),
    (f"{C}.workerGroupSpecs.0.minReplicas", 9, "0 ≤ minReplicas ≤ maxReplicas"),
    (f"{C}.workerGroupSpecs.0.suspend", True, "suspend does not go with the autoscaler"),
    (f"{C}.headGroupSpec.resources", {"CPU": "0"}, "in rayStartParams or in resources"),
    (f"{C}.workerGroupSpecs.0.groupName", "head", "none of them called head"),
    (f"{C}.authOptions.enableK8sTokenAuth", True, "not for RayJobs"),
]


@pytest.mark.parametrize(("path", "value", "said"), BREACHES, ids=[f"{path}={value}" for path, value, _ in BREACHES])
def test_a_broken_rule_is_found(path: str, value: Any, said: str) -> None:
    found = broken_rules(changed(document("rayjob.yaml", "RayJob"), f"spec.{path}", value))
    assert any(said in rule for rule in found), found


def test_kueue_takes_a_cluster_that_scales_only_where_it_is_told_so() -> None:
    job = changed(document("rayjob.yaml", "RayJob"), "metadata.annotations", {})
    assert broken_rules(job) == ["Kueue wants its annotation elastic-job where a cluster scales"]
    assert broken_rules(changed(job, "metadata.labels", {})) == []


# --- what they promise


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_gpu_pods_begin_at_none_on_spot_instances_first(name: str, kind: str) -> None:
    spec = cluster_spec(document(name, kind))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    spot, on_demand = spec["workerGroupSpecs"]
    for group in (spot, on_demand):
        assert group["replicas"] == group["minReplicas"] == 0
        assert group["idleTimeoutSeconds"] > 0
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 30
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert any(it["key"] == "nvidia.com/gpu" for it in group["template"]["spec"]["tolerations"])
    assert spot["priority"] > on_demand.get("priority", 0)
    assert any("spot" in it["key"] for it in spot["template"]["spec"]["tolerations"])
    assert not any("spot" in it["key"] for it in on_demand["template"]["spec"]["tolerations"])
    assert "gpu" not in str(spec["headGroupSpec"])


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_all_pods_are_of_one_image_with_this_projects_ray(name: str, kind: str) -> None:
    manifest = document(name, kind)
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert cluster_spec(manifest)["rayVersion"] == pinned[1]
    pods = [group["template"]["spec"] for group in groups(manifest).values()]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    user = re.search(r"^USER (\d+)", (ROOT / "cluster" / "Dockerfile").read_text(), re.M)
    assert user
    for pod in pods:
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user[1]),
            "runAsGroup": int(user[1]),
            "fsGroup": int(user[1]),
        }


def test_secrets_are_only_named() -> None:
    for name, kind in ALL:
        assert kind != "Secret"
        for group in groups(document(name, kind)).values() if kind.startswith("Ray") else ():
            for container in group["template"]["spec"]["containers"]:
                assert {it["name"] for it in container["env"]} == {
                    "HF_HOME",
                    "LORASWEEP_CACHE",
                    "RAY_USAGE_STATS_ENABLED",
                }


def test_the_cluster_that_stays_has_the_jobs_pods() -> None:
    of_job = copy.deepcopy(cluster_spec(document("rayjob.yaml", "RayJob")))
    head = of_job["headGroupSpec"]["template"]["spec"]
    assert [it["name"] for it in head["volumes"]] == ["shared", "sweep"]
    head["volumes"].pop()
    head["containers"][0]["volumeMounts"].pop()
    assert of_job == cluster_spec(document("raycluster.yaml", "RayCluster"))


def test_pods_are_nodes_by_their_own_names() -> None:
    """KubeRay joins these parameters into a line for bash."""
    for group in groups(document("rayjob.yaml", "RayJob")).values():
        words = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
        command = ["/bin/bash", "-c", "--", f"echo {words}"]
        said = subprocess.run(command, env={"HOSTNAME": "pod-7"}, capture_output=True, text=True, check=True).stdout
        assert "--node-name=pod-7" in said.split()


def test_the_command_survives_the_two_shells_that_read_it() -> None:
    """KubeRay's submitter joins its words into a line for bash, and Ray's job supervisor gives them to sh."""
    entrypoint = document("rayjob.yaml", "RayJob")["spec"]["entrypoint"]
    assert re.fullmatch(r"[\w\s./=-]+", entrypoint)


def sweep_of_the_configmap(folder: Path, text: str | None = None) -> Path:
    """What the pod sees at /mnt/sweep, as the volume maps the ConfigMap's keys, with a text of the tests' own."""
    data = document("rayjob.yaml", "ConfigMap")["data"]
    head = cluster_spec(document("rayjob.yaml", "RayJob"))["headGroupSpec"]["template"]["spec"]
    (volume,) = (it["configMap"] for it in head["volumes"] if "configMap" in it)
    assert volume["name"] == document("rayjob.yaml", "ConfigMap")["metadata"]["name"]
    for item in volume["items"]:
        file = folder / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text or data[item["key"]])
    return folder


def test_the_sweep_in_the_configmap_is_understood_and_lies_on_the_shared_volume(tmp_path: Path) -> None:
    words = document("rayjob.yaml", "RayJob")["spec"]["entrypoint"].split()
    assert words[:4] == ["lorasweep", "run", "--config-dir", "/mnt/sweep"]
    config = compose(words[4:], str(sweep_of_the_configmap(tmp_path))).config
    assert config.resources.gpus_per_trial == 1
    assert config.sweep.dir.startswith("/mnt/shared/")
    head = cluster_spec(document("rayjob.yaml", "RayJob"))["headGroupSpec"]["template"]["spec"]
    mounts = {it["mountPath"]: it["name"] for it in head["containers"][0]["volumeMounts"]}
    assert mounts == {"/mnt/shared": "shared", "/mnt/sweep": "sweep"}
    claim = document("storage.yaml", "PersistentVolumeClaim")
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in head["volumes"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_rays_own_autoscaler_answers_a_sweeps_demand_with_spot_pods_then_others() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    cluster = changed(document("raycluster.yaml", "RayCluster"), "metadata.namespace", "default")
    derived = _derive_autoscaling_config_from_ray_cr(yaml.safe_load(yaml.safe_dump(cluster)))
    config = AutoscalingConfig(derived, skip_content_hash=True)
    assert derived["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert derived["available_node_types"]["gpu-spot"]["resources"] == {"CPU": 4, "GPU": 1, "memory": 24 << 30}
    assert derived["available_node_types"]["gpu-spot"]["idle_timeout_s"] == 120

    def launched(workers: int) -> dict[str, int]:
        claim = GangResourceRequest(requests=[ResourceRequestUtil.make({"CPU": 1.0, "GPU": 1.0})])
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            gang_resource_requests=[claim] * workers,
        )
        reply = ResourceDemandScheduler(None).schedule(request)
        return {it.instance_type: it.count for it in reply.to_launch if it.instance_type != "headgroup"}

    assert launched(0) == {}
    assert launched(3) == {"gpu-spot": 3}
    assert launched(10) == {"gpu-spot": 8, "gpu-on-demand": 2}
