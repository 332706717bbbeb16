"""The custom resources of the kit hold to their projects' schemas (make test-cluster).

The models of these packages drop what they do not know, so that what comes out of them is compared
with what went in. KServe's own package imports a server with 450 MB of requirements: only the
models in it are used. KubeRay publishes no package: the fields of its own kinds are listed here,
and the pods inside are read by the models of Kubernetes.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

if shutil.which("kubectl") is None:
    pytest.skip("kubectl is not installed", allow_module_level=True)
ROOT = Path(__file__).parents[1]
K8S = ROOT / "docker" / "k8s"
Manifest = dict[str, Any]


def custom(overlay: str) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [m for m in yaml.safe_load_all(done.stdout) if m]
    return [m for m in found if m["kind"] in KINDS]


def through_keda(manifest: Manifest) -> Manifest:
    model = pytest.importorskip("cloudcoil.models.keda.v1alpha1").ScaledObject
    dumped = model.model_validate(manifest).model_dump_json(by_alias=True, exclude_none=True)
    return json.loads(dumped)


def through_kubeflow(manifest: Manifest) -> Manifest:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    return getattr(models, f"TrainerV1alpha1{manifest['kind']}").from_dict(manifest).to_dict()


def through_kserve(manifest: Manifest) -> Manifest:
    kubernetes = pytest.importorskip("kubernetes.client")
    if "kserve" not in sys.modules:
        spec = importlib.util.find_spec("kserve")
        if spec is None:
            pytest.skip("kserve is not installed in this environment")
        package: Any = types.ModuleType("kserve")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["kserve"] = package
        # The parts that are of Kubernetes itself.
        package.models = importlib.import_module("kserve.models")
        for name, model in vars(kubernetes).items():
            if name.startswith("V"):
                vars(package.models).setdefault(name, model)
        # Named by a model of the package, and in none of its files.
        vars(package.models)["V1beta1MetricQuantity"] = str
    api = importlib.import_module("kserve.api_client").ApiClient()
    answer = types.SimpleNamespace(data=json.dumps(manifest))
    return api.sanitize_for_serialization(api.deserialize(answer, "V1beta1InferenceService"))


# From the CustomResourceDefinition of KubeRay 1.7.0 (ray-operator/config/crd/bases), v1.
KUBERAY: dict[str, list[str]] = yaml.safe_load("""
job: [activeDeadlineSeconds, backoffLimit, clusterSelector, deletionStrategy, entrypoint,
  entrypointNumCpus, entrypointNumGpus, entrypointResources, jobId, managedBy, metadata,
  preRunningDeadlineSeconds, rayClusterSpec, runtimeEnvYAML, shutdownAfterJobFinishes,
  submissionMode, submitterConfig, submitterPodTemplate, suspend, ttlSecondsAfterFinished]
cluster: [authOptions, autoscalerOptions, enableInTreeAutoscaling, gcsFaultToleranceOptions,
  headGroupSpec, headServiceAnnotations, historyServerOptions, managedBy, networkPolicy, rayVersion,
  suspend, tlsOptions, upgradeStrategy, workerGroupSpecs]
head: [enableIngress, headService, ingressOptions, labels, rayStartParams, resources, serviceType,
  template]
workers: [groupName, idleTimeoutSeconds, labels, maxReplicas, minReplicas, numOfHosts, priority,
  rayStartParams, replicas, resources, scaleStrategy, suspend, template]
""")


def through_kuberay(manifest: Manifest) -> Manifest:
    kubernetes = pytest.importorskip("kubernetes.client")
    api = kubernetes.ApiClient()

    def known(kind: str, given: Manifest) -> Manifest:
        return {key: value for key, value in given.items() if key in KUBERAY[kind]}

    def pods(group: Manifest) -> Manifest:
        answer = types.SimpleNamespace(data=json.dumps(group["template"]))
        template = api.deserialize(answer, "V1PodTemplateSpec")
        return group | {"template": api.sanitize_for_serialization(template)}

    job = known("job", manifest["spec"])
    cluster = known("cluster", job["rayClusterSpec"])
    cluster["headGroupSpec"] = pods(known("head", cluster["headGroupSpec"]))
    cluster["workerGroupSpecs"] = [
        pods(known("workers", group)) for group in cluster["workerGroupSpecs"]
    ]
    return manifest | {"spec": job | {"rayClusterSpec": cluster}}


KINDS: dict[str, Callable[[Manifest], Manifest]] = {
    "TrainJob": through_kubeflow,
    "TrainingRuntime": through_kubeflow,
    "ScaledObject": through_keda,
    "InferenceService": through_kserve,
    "RayJob": through_kuberay,
}
MANIFESTS = [m for overlay in ("trainjob", "keda", "kserve") for m in custom(overlay)]
MANIFESTS.append(yaml.safe_load((ROOT / "cluster" / "ray" / "rayjob.yaml").read_text()))


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def test_every_kind_is_there() -> None:
    assert {m["kind"] for m in MANIFESTS} == KINDS.keys()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=named)
def test_every_field_is_known(manifest: Manifest) -> None:
    assert KINDS[manifest["kind"]](manifest) == manifest


@pytest.mark.parametrize("manifest", MANIFESTS, ids=named)
def test_the_check_finds_a_misspelt_key(manifest: Manifest) -> None:
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["replicaz"] = 3
    # Either way.
    with contextlib.suppress(ValueError):
        assert KINDS[manifest["kind"]](wrong) != wrong


def test_the_check_finds_a_misspelt_key_in_a_pod_of_ray() -> None:
    wrong = copy.deepcopy(MANIFESTS[-1])
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["volumez"] = []
    assert through_kuberay(wrong) != wrong
