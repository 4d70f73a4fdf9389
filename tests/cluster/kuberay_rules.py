"""What KubeRay 1.7 and Kueue refuse, and no schema says.

Those that concern manifests like ours of KubeRay's ``ray-operator/controllers/ray/utils/validation.go`` (v1.7.0), and
of Kueue's webhooks (``pkg/controller/jobs/{rayjob/rayjob_webhook,raycluster/common}.go``, August 2026).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests.cluster.kubernetes_schemas import cluster_spec, groups

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035
_QUEUE, _ELASTIC = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
_OF_RAY_START = {"num-cpus", "num-gpus", "memory", "resources"}


def broken_rules(manifest: Mapping[str, Any]) -> list[str]:
    """A sentence for each rule that a RayJob or RayCluster breaks."""
    found = [*_of_names(manifest), *_of_clusters(cluster_spec(manifest))]
    if manifest["kind"] == "RayJob":
        found += _of_jobs(manifest["spec"])
    return [*found, *_of_kueue(manifest)]


def _of_names(manifest: Mapping[str, Any]) -> Iterator[str]:
    name, limit = manifest["metadata"]["name"], 47 if manifest["kind"] == "RayJob" else 53
    if len(name) > limit or not _NAME.fullmatch(name):
        yield f"{name} is not a name of up to {limit} characters of DNS-1035"


def _of_jobs(spec: Mapping[str, Any]) -> Iterator[str]:
    retries, mode = spec.get("backoffLimit", 0), spec.get("submissionMode")
    if not spec.get("shutdownAfterJobFinishes"):
        if spec.get("suspend"):
            yield "suspend wants shutdownAfterJobFinishes"
        if spec.get("ttlSecondsAfterFinished", 0) > 0:
            yield "ttlSecondsAfterFinished wants shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or retries < 0:
        yield "ttlSecondsAfterFinished and backoffLimit are not negative"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} is positive"
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "one of rayClusterSpec and clusterSelector is needed"
    if spec.get("clusterSelector") and (retries or spec.get("suspend") or mode == "SidecarMode"):
        yield "clusterSelector goes with neither backoffLimit nor suspend nor SidecarMode"
    if mode == "InteractiveMode" and retries:
        yield "InteractiveMode goes without backoffLimit"
    if mode == "SidecarMode":
        if "submitterPodTemplate" in spec or "submitterConfig" in spec:
            yield "SidecarMode has no submitter to configure"
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        if head.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode wants the head's restartPolicy Never"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is a mapping"


def _of_clusters(spec: Mapping[str, Any]) -> Iterator[str]:
    if not spec:
        return
    version = tuple(int(part) for part in re.findall(r"\d+", spec.get("rayVersion", "0"))[:2])
    scales, options = bool(spec.get("enableInTreeAutoscaling")), spec.get("autoscalerOptions", {})
    second = options.get("version") == "v2"
    everywhere = {"headGroupSpec": spec["headGroupSpec"]}
    everywhere |= {group["groupName"]: group for group in spec.get("workerGroupSpecs", [])}
    for name, group in everywhere.items():
        pod = group["template"]["spec"]
        if not pod.get("containers"):
            yield f"{name}: at least one container"
        if group.get("resources") and _OF_RAY_START & group.get("rayStartParams", {}).keys():
            yield f"{name}: resources are named in rayStartParams or in resources"
        if "labels" in group.get("rayStartParams", {}):
            yield f"{name}: labels have a field of their own"
        if scales and second and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: the autoscaler v2 wants restartPolicy Never"
    for name, group in list(everywhere.items())[1:]:
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not scales and (least is None or most is None):
            yield f"{name}: minReplicas and maxReplicas are needed where nothing scales"
        if not 0 <= (least or 0) <= (most if most is not None else 2**31):
            yield f"{name}: 0 ≤ minReplicas ≤ maxReplicas"
        if group.get("suspend") and scales:
            yield f"{name}: suspend does not go with the autoscaler"
        if "idleTimeoutSeconds" in group and (group["idleTimeoutSeconds"] < 0 or not second):
            yield f"{name}: idleTimeoutSeconds is not negative, and of the autoscaler v2"
        if group.get("priority") and (not second or version < (2, 56)):
            yield f"{name}: priority is of the autoscaler v2, and of Ray 2.56"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is not negative"
    head = (spec["headGroupSpec"]["template"]["spec"].get("containers") or [{}])[0]
    variables = {it["name"] for it in head.get("env", [])}
    if options.get("version") and "RAY_enable_autoscaler_v2" in variables:
        yield "the autoscaler's version is said twice"
    if "RAY_REDIS_ADDRESS" in variables:
        yield "RAY_REDIS_ADDRESS is for gcsFaultToleranceOptions to set"
    authentication = spec.get("authOptions", {})
    if authentication.get("mode") == "token" and version < (2, 52):
        yield "tokens want rayVersion, of 2.52 or later"
    if authentication.get("enableK8sTokenAuth"):
        yield "tokens of Kubernetes are not for RayJobs, and not what lorasweep hands on"


def _of_kueue(manifest: Mapping[str, Any]) -> Iterator[str]:
    metadata, spec = manifest["metadata"], manifest["spec"]
    if _QUEUE not in metadata.get("labels", {}):
        return
    if manifest["kind"] == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue wants shutdownAfterJobFinishes"
    if spec.get("clusterSelector"):
        yield "Kueue has no jobs on clusters that are there"
    if (
        cluster_spec(manifest).get("enableInTreeAutoscaling")
        and metadata.get("annotations", {}).get(_ELASTIC) != "true"
    ):
        yield "Kueue wants its annotation elastic-job where a cluster scales"
    names = [group["groupName"] for group in list(groups(manifest).values())[1:]]
    if "head" in names or len(names) > 17:
        yield "Kueue has up to 17 groups of workers, none of them called head"
