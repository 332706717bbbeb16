"""The manifests render, hold to the schemas of Kubernetes, and fit each other and the images."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from reward_server import config
from trainer.config.load import load

ROOT = Path(__file__).parents[2]
OVERLAYS = ("mini", "full", "train", "single", "keda", "trainjob", "kserve")
# Custom resources: their schemas are checked in an environment of its own, by tests_cluster.
CUSTOM = {"TrainJob", "TrainingRuntime", "ScaledObject", "InferenceService"}
# The oldest release with all that is used (the pause before a container stops), and a new one.
RELEASES = ("1.30", "1.37")
Manifest = dict[str, Any]


def render(overlay: str) -> list[Manifest]:
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            folder = str(ROOT / "docker" / "k8s" / "overlays" / overlay)
            done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return [found for found in yaml.safe_load_all(done.stdout) if found]
    pytest.skip("neither kubectl nor kustomize is installed")


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    kinds = {**of_kind(manifests, "Deployment"), **of_kind(manifests, "Job")}
    found = {name: manifest["spec"]["template"] for name, manifest in kinds.items()}
    for name, runtime in of_kind(manifests, "TrainingRuntime").items():
        (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        found[name] = job["template"]["spec"]["template"]
    for name, service in of_kind(manifests, "InferenceService").items():
        spec = dict(service["spec"]["predictor"])
        labels = spec.pop("labels")
        for key in ("minReplicas", "maxReplicas", "autoScaling"):
            del spec[key]
        found[name] = {"metadata": {"labels": labels}, "spec": spec}
    return found


def matches(selector: dict[str, str], manifests: list[Manifest]) -> list[Manifest]:
    return [
        pod
        for pod in pods(manifests).values()
        if selector.items() <= pod["metadata"]["labels"].items()
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_every_manifest_holds_to_the_schema(manifests: list[Manifest], release: str) -> None:
    assert len(manifests) >= 3
    for manifest in manifests:
        # A kind without a schema is an error.
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, release, strict=True)
    for name, template in pods(manifests).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, release, strict=True)


def test_everything_is_in_one_namespace(manifests: list[Manifest]) -> None:
    found = {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"}
    assert found == {"flow-reward"}


def test_the_schema_check_finds_a_misspelt_key() -> None:
    gateway = copy.deepcopy(of_kind(render("mini"), "Deployment")["gateway"])
    container = gateway["spec"]["template"]["spec"]["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(gateway, RELEASES[0], strict=True)


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 10001, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            if "resources" in container:
                assert container["resources"]["limits"]["memory"], name
    for name, job in of_kind(manifests, "TrainJob").items():
        assert job["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"], name


def test_servers_have_probes_and_time_to_drain(manifests: list[Manifest]) -> None:
    for name, deployment in of_kind(manifests, "Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        container = spec["containers"][0]
        paths = {
            probe: container[f"{probe}Probe"]["httpGet"]["path"]
            for probe in ("startup", "readiness", "liveness")
        }
        assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}, name
        pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain_s = config.ServerConfig.model_validate({}).drain_timeout_s
        assert spec["terminationGracePeriodSeconds"] > pause_s + drain_s, name


def test_everything_that_points_at_something_finds_it(manifests: list[Manifest]) -> None:
    deployments = of_kind(manifests, "Deployment")
    for name, service in of_kind(manifests, "Service").items():
        found = matches(service["spec"]["selector"], manifests)
        assert len(found) == 1, name
        named = {p["name"] for p in found[0]["spec"]["containers"][0].get("ports", ())}
        targets = {p["targetPort"] for p in service["spec"]["ports"] if "targetPort" in p}
        assert targets <= named, name
    for name, budget in of_kind(manifests, "PodDisruptionBudget").items():
        assert len(matches(budget["spec"]["selector"]["matchLabels"], manifests)) == 1, name
    for name, scaler in of_kind(manifests, "HorizontalPodAutoscaler").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments, name
        metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
        assert metric in (ROOT / "reward_server" / "observability" / "metrics.py").read_text(), name
    for name, scaler in of_kind(manifests, "ScaledObject").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
        assert name in deployments
        # KEDA refuses what another autoscaler scales.
        assert name not in of_kind(manifests, "HorizontalPodAutoscaler")
        query = scaler["spec"]["triggers"][0]["metadata"]["query"]
        assert f'pod=~"{name}-.*"' in query
        assert f'namespace="{deployments[name]["metadata"]["namespace"]}"' in query
    claims = of_kind(manifests, "PersistentVolumeClaim")
    configs = of_kind(manifests, "ConfigMap")
    for name, pod in pods(manifests).items():
        volumes = pod["spec"]["volumes"]
        assert {v["configMap"]["name"] for v in volumes if "configMap" in v} <= configs.keys(), name
        mounts = {m["name"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounts == {volume["name"] for volume in volumes}, name
        wanted = [
            v["persistentVolumeClaim"]["claimName"]
            for v in volumes
            if not {"emptyDir", "secret", "configMap"} & v.keys()
        ]
        assert set(wanted) <= claims.keys(), name


def test_every_pod_is_named_by_one_network_policy(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy") or of_kind(render("mini"), "NetworkPolicy")
    if "default-deny" not in policies:
        policies |= {"default-deny": of_kind(render("mini"), "NetworkPolicy")["default-deny"]}
    assert policies.pop("default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    for name, pod in pods(manifests).items():
        labels = pod["metadata"]["labels"]
        own = [
            policy
            for policy in policies.values()
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        ]
        assert len(own) == 1, name
    for policy in policies.values():
        if policy["spec"]["podSelector"].get("matchLabels") == {"flow-reward/role": "scorer"}:
            assert policy["spec"]["egress"] == []


def test_environments_are_configurations_and_upstreams_are_services() -> None:
    for overlay in ("mini", "full"):
        manifests = render(overlay)
        services = of_kind(manifests, "Service")
        for name, pod in pods(manifests).items():
            container = pod["spec"]["containers"][0]
            files = [a for a in container.get("args", ()) if a.startswith("/etc/flow-reward/")]
            if name == "models-pull":
                continue
            file = Path(files[0]).name if files else f"{name}.toml"
            env = {e["name"]: e["value"] for e in container["env"]}
            loaded = config.load(ROOT / "docker" / "config" / file, env)
            for scorer, section in loaded.scorers.items():
                for upstream in section.targets:
                    host, port = re.fullmatch(r"dns:///([a-z]+):(\d+)", upstream).groups()  # pyright: ignore[reportOptionalMemberAccess]
                    assert services[host]["spec"]["clusterIP"] == "None", scorer
                    assert int(port) in [p["port"] for p in services[host]["spec"]["ports"]]
            gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
            on_gpu = any(s.device == "cuda:0" for s in loaded.scorers.values())
            assert on_gpu == (gpus == 1), name


def test_secrets_and_probes_of_the_full_overlay() -> None:
    pod = pods(render("full"))["gateway"]["spec"]
    secrets = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert secrets == {"reward-keys", "reward-tls"}
    container = pod["containers"][0]
    for probe in ("startup", "readiness", "liveness"):
        assert container[f"{probe}Probe"]["httpGet"]["scheme"] == "HTTPS"
    assert "REWARD_SERVER__SERVER__ALLOW_UNAUTHENTICATED" not in {
        e["name"] for e in container["env"]
    }


def test_the_training_job_is_one_run_over_its_pods() -> None:
    manifests = render("train")
    job = of_kind(manifests, "Job")["flow-train"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert spec["completionMode"] == "Indexed"
    assert f"--nnodes={spec['completions']}" in container["args"]
    assert spec["completions"] == spec["parallelism"]
    # The first pod, by the name that Kubernetes gives it.
    assert f"--rdzv-endpoint=flow-train-0.{pod['subdomain']}:29500" in container["args"]
    assert pod["subdomain"] in of_kind(manifests, "Service")
    gpus = spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    fits(container["args"], gpus)
    # Process 0 of the pod has to be the script that passes SIGTERM on.
    assert container["command"] == ["sh", "/scripts/train.sh"]
    assert "train.sh" in of_kind(manifests, "ConfigMap")["flow-train-scripts"]["data"]


def test_the_train_job_of_kubeflow_names_its_runtime_and_fits_its_gpus() -> None:
    manifests = render("trainjob")
    ((job,), (runtime,)) = (
        of_kind(manifests, kind).values() for kind in ("TrainJob", "TrainingRuntime")
    )
    assert job["spec"]["runtimeRef"] == {
        "kind": "TrainingRuntime",
        "name": runtime["metadata"]["name"],
    }
    trainer = job["spec"]["trainer"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    fits(trainer["args"], trainer["numNodes"] * trainer["numProcPerNode"])
    (template,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # The names by which Kubeflow Trainer finds what it changes.
    assert template["name"] == "node"
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert template["template"]["metadata"]["labels"] == step
    (container,) = template["template"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "node"
    assert container["command"] == ["sh", "/scripts/train.sh"]


def fits(arguments: list[str], gpus: int) -> None:
    """The preset is made for so many GPUs."""
    preset = next(a for a in arguments if a.startswith("--preset=")).partition("=")[2]
    assert load(preset, (), {}, world_size=gpus).run.gpus == gpus


def test_one_scorer_alone_asks_for_keys() -> None:
    manifests = render("single")
    pod = pods(manifests)["geneval"]["spec"]
    assert {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v} == {
        "reward-keys",
        "reward-tls",
    }
    names = {e["name"] for e in pod["containers"][0]["env"]}
    assert "REWARD_SERVER__SERVER__ALLOW_UNAUTHENTICATED" not in names
    assert "REWARD_SERVER__SERVER__KEYS_FILE" in names
    assert "gateway" not in of_kind(manifests, "Deployment")
