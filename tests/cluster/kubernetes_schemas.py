"""Kubernetes manifests against KubeRay's schemas and the core's, as strictly as `kubectl apply --validate=strict`.

KubeRay's definitions (v1.7, Apache-2.0) are not part of this project. They are read from a folder beside it, from
``LORASWEEP_KUBERAY_CRDS``, or from their release; what they must be is known by their SHA-256.
"""

import functools
import hashlib
import os
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.33"
_RELEASE = "https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases"
_SHA256 = {
    "RayCluster": "c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1",
    "RayJob": "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
}
# What a schema of a custom resource leaves to the API server.
_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def documents(name: str) -> list[dict[str, Any]]:
    """The documents of a manifest in ``cluster/kuberay/``."""
    return list(yaml.safe_load_all((ROOT / "cluster" / "kuberay" / name).read_text()))


def document(name: str, kind: str) -> dict[str, Any]:
    return next(it for it in documents(name) if it["kind"] == kind)


@functools.cache
def kuberay_schema(kind: str) -> dict[str, Any]:
    """The schema of KubeRay's ``v1`` of a kind, with unknown fields refused. Skips where it is out of reach."""
    name = f"ray.io_{kind.lower()}s.yaml"
    folders = [os.environ.get("LORASWEEP_KUBERAY_CRDS", ""), str(ROOT.parent / "shared" / "kuberay")]
    text = next((file.read_bytes() for folder in folders if folder and (file := Path(folder) / name).exists()), None)
    if text is None:
        try:
            text = urllib.request.urlopen(f"{_RELEASE}/{name}", timeout=10).read()
        except OSError as error:
            pytest.skip(
                f"KubeRay's schemas are out of reach ({error}): LORASWEEP_KUBERAY_CRDS names a folder with them"
            )
    assert hashlib.sha256(text).hexdigest() == _SHA256[kind], f"this {name} is not that of KubeRay 1.7.0"
    (version,) = (it for it in yaml.load(text, yaml.CSafeLoader)["spec"]["versions"] if it["name"] == "v1")
    schema: dict[str, Any] = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = _METADATA
    schema["properties"]["apiVersion"]["enum"], schema["properties"]["kind"]["enum"] = ["ray.io/v1"], [kind]
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _strict(schema: Any) -> Any:
    """OpenAPI's words as JSON Schema's; objects with named fields have no others."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _strict(it) for name, it in part.items()} if key == "properties" else _strict(part)
        for key, part in schema.items()
        if key not in ("default", "description", "format")
    }
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def faults(manifest: Mapping[str, Any]) -> list[str]:
    """What KubeRay's schema and the core's find wrong, each with its path."""
    if manifest["apiVersion"] == "v1":
        return list(_core_faults(manifest, ""))
    checker = jsonschema.Draft202012Validator(kuberay_schema(manifest["kind"]))
    found = [f"{error.json_path[2:]}: {error.message}" for error in checker.iter_errors(manifest)]
    for where, group in groups(manifest).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group.get("template", {})}
        pod["metadata"] = {"name": "pod", **group.get("template", {}).get("metadata", {})}
        found += _core_faults(pod, f"{where}.template.")
    return found


def _core_faults(manifest: Mapping[str, Any], where: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(dict(manifest), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{where}{'.'.join(str(it) for it in error.path)}: {error.message}"


def cluster_spec(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The RayCluster's part of a RayCluster or a RayJob."""
    found: dict[str, Any] = manifest["spec"]
    return found if manifest["kind"] == "RayCluster" else found.get("rayClusterSpec", {})


def groups(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Head and worker groups, by where they are."""
    spec = cluster_spec(manifest)
    workers = {f"workerGroupSpecs[{n}]": group for n, group in enumerate(spec.get("workerGroupSpecs", []))}
    return {"headGroupSpec": spec.get("headGroupSpec", {}), **workers}
