"""The manifests are valid under KubeRay's CRDs and the schemas of Kubernetes; unknown fields are errors."""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.scripts.scripts import start

from gtvray.cli.main import app
from gtvray.serving.arguments import parse_arguments, read_shipped_config

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "cluster" / "kuberay"
KUBERNETES = "1.34"
OVERLAYS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))
# Maps with arbitrary keys.
FREE = ("labels", "matchLabels", "annotations", "rayStartParams", "requests", "limits")
METADATA = {"name", "labels", "annotations"}


@pytest.fixture(scope="module")
def crds(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Validators of KubeRay's custom resources, by kind."""
    given = os.environ.get("GTVRAY_KUBERAY_CRDS")
    folder = Path(given) if given else request.getfixturevalue("shared_data") / "kuberay_crds"
    if not folder.is_dir():
        pytest.skip(f"KubeRay's definitions are not here ({folder})")
    found = {}
    for name in ("rayclusters", "rayjobs", "rayservices"):
        file = folder / f"ray.io_{name}.yaml"
        definition = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        (version,) = [each for each in definition["versions"] if each["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[definition["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def strict(schema: Any) -> Any:
    """Return a CRD's schema in which unknown fields are errors, as with `kubectl --validate=strict`."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
        defaulted = [name for name, each in made["properties"].items() if isinstance(each, dict) and "default" in each]
        if "required" in made:
            made["required"] = [name for name in made["required"] if name not in defaulted]
    return made


@cache
def _documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.load_all(file.read_text(), yaml.CSafeLoader) if each]


def built(folder: Path) -> list[dict[str, Any]]:
    """Build a folder like `kubectl kustomize`, with the features used here: resources and JSON patches."""
    (kustomization,) = _documents(folder / "kustomization.yaml")
    found: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        found += built(path) if path.is_dir() else copy.deepcopy(_documents(path))
    for patch in kustomization.get("patches", []):
        target = patch["target"]
        (document,) = [
            each for each in found if (each["kind"], each["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        for step in yaml.safe_load(patch["patch"]):
            apply(document, step)
    return found


def apply(document: Any, step: dict[str, Any]) -> None:
    *inner, last = step["path"].strip("/").split("/")
    for part in inner:
        document = document[int(part) if isinstance(document, list) else part]
    key = int(last) if isinstance(document, list) else last
    if step["op"] == "remove":
        del document[key]
    else:
        if step["op"] == "replace":
            document[key]  # The key must exist.
        document[key] = step["value"]


def check_kustomization(document: dict[str, Any]) -> None:
    """Check a kustomization, with its patches as lists, for unknown and missing fields."""
    steps = [step for patch in document.get("patches", []) for step in patch.get("patch", [])]
    expected = [
        (document, {"apiVersion", "kind", "resources"}, {"patches"}),
        *((patch, {"target", "patch"}, set()) for patch in document.get("patches", [])),
        *((patch["target"], {"kind", "name"}, set()) for patch in document.get("patches", []) if "target" in patch),
        *((step, {"op", "path"} if step.get("op") == "remove" else {"op", "path", "value"}, set()) for step in steps),
    ]
    for part, needed, others in expected:
        if not needed <= set(part) <= needed | others:
            raise jsonschema.ValidationError(f"fields {sorted(part)} instead of {sorted(needed)}")


def check(document: dict[str, Any], crds: dict[str, Any]) -> None:
    if not {"apiVersion", "kind", "metadata"} <= set(document):
        raise jsonschema.ValidationError("apiVersion, kind or metadata is missing")
    if document["apiVersion"] == "ray.io/v1":
        crds[document["kind"]].validate(document)
        # CRDs accept any metadata; the API server checks it.
        for metadata in under("metadata", document):
            if not set(metadata) <= METADATA:
                raise jsonschema.ValidationError(f"unknown metadata: {set(metadata) - METADATA}")
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_every_folder_is_valid(folder: Path, crds: dict[str, Any]) -> None:
    documents = built(folder)
    assert documents
    names = [(each["kind"], each["metadata"]["name"]) for each in documents]
    assert len(set(names)) == len(names)
    for document in documents:
        check(document, crds)


def test_every_manifest_is_in_a_folder_s_list() -> None:
    listed = {
        (folder / name).resolve()
        for folder in OVERLAYS
        for name in _documents(folder / "kustomization.yaml")[0]["resources"]
    }
    files = {path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files == {path for path in listed if path.is_file()}


def keys_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all keys of a document, except those of maps with arbitrary keys."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from keys_of(each, (*path, number))
    elif isinstance(value, dict) and not (path and path[-1] in FREE):
        for key, each in value.items():
            yield (*path, key)
            yield from keys_of(each, (*path, key))


def misspelt(document: Any, path: Sequence[Any]) -> Any:
    """Return a copy of a document with another name of one key."""
    wrong = copy.deepcopy(document)
    inner = wrong
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1] + "x"] = inner.pop(path[-1])
    return wrong


def is_accepted(check_one: Callable[[], None]) -> bool:
    try:
        check_one()
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError):
        return False
    return True


def test_a_misspelt_field_anywhere_fails(crds: dict[str, Any]) -> None:
    """Every key of every document, one at a time; a document of several folders counts once."""
    documents = {
        (each["kind"], each["metadata"]["name"], *path): each
        for folder in OVERLAYS
        for each in built(folder)
        for path in keys_of(each)
    }
    undetected = [
        (kind, name, *path)
        for (kind, name, *path), document in documents.items()
        # The selector of a service is a map of labels.
        if not (kind == "Service" and path[:2] == ["spec", "selector"] and len(path) > 2)
        and is_accepted(lambda: check(misspelt(document, path), crds))  # noqa: B023  # called at once
    ]
    assert undetected == []
    assert len(documents) > 800


def test_a_misspelt_field_of_a_kustomization_fails() -> None:
    paths = 0
    for folder in OVERLAYS:
        (kustomization,) = _documents(folder / "kustomization.yaml")
        readable = copy.deepcopy(kustomization)
        for patch in readable.get("patches", []):
            patch["patch"] = yaml.safe_load(patch["patch"])
        check_kustomization(readable)
        for path in keys_of(readable):
            # The value that a patch sets is checked with the document.
            if "value" not in path[:-1]:
                paths += 1
                wrong = misspelt(readable, path)
                assert not is_accepted(lambda: check_kustomization(wrong)), path  # noqa: B023  # called at once
    assert paths > 50


def under(name: str, value: Any) -> Iterator[Any]:
    """Yield the values of a key at any depth of a document."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == name:
                yield each
            yield from under(name, each)
    elif isinstance(value, list):
        for each in value:
            yield from under(name, each)


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the templates of all pods."""
    names = ("template", "submitterPodTemplate")
    found = [template for document in documents for name in names for template in under(name, document)]
    # The claims of a StatefulSet are volumes of its pods.
    for document in documents:
        for claim in document["spec"].get("volumeClaimTemplates", []):
            volumes = document["spec"]["template"]["spec"].setdefault("volumes", [])
            volumes.append({"name": claim["metadata"]["name"]})
    return found


def volumes_of(pod: dict[str, Any]) -> set[str]:
    return {volume["name"] for volume in pod.get("volumes", [])}


def named(pod: dict[str, Any]) -> set[str]:
    """Return the names of the volume claims of a pod."""
    volumes = pod.get("volumes", [])
    return {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each}


def groups(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the groups of Ray nodes of a document, and whether it is the head's."""
    yield from ((group, True) for group in under("headGroupSpec", document))
    yield from ((group, False) for each in under("workerGroupSpecs", document) for group in each)


def test_only_pods_with_the_autoscaler_have_a_token_of_the_api_server() -> None:
    for document in [each for folder in ("overlays/fleet", "sweep") for each in built(MANIFESTS / folder)]:
        scaled = any(under("enableInTreeAutoscaling", document))
        heads = [group["template"] for group, is_head in groups(document) if is_head and scaled]
        for template in pods([document]):
            assert ("automountServiceAccountToken" not in template["spec"]) == (template in heads)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_ray_start_accepts_its_options_and_stays_within_the_limits_of_the_pod(folder: Path) -> None:
    known = {option.removeprefix("--") for param in start.params for option in param.opts}
    for group, _ in (found for document in built(folder) for found in groups(document)):
        given = group["rayStartParams"]
        assert set(given) <= known
        pod = group["template"]["spec"]
        limit = size(pod["containers"][0]["resources"]["limits"]["memory"])
        (shm,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert int(given["memory"]) == limit * 7 // 10
        assert int(given["object-store-memory"]) < size(shm)
        assert int(given["memory"]) + int(given["object-store-memory"]) < limit


def size(text: str) -> int:
    """Return a quantity of Kubernetes in bytes."""
    return int(text.removesuffix("Gi")) * 2**30


def test_selectors_find_pods() -> None:
    documents = [each for folder in ("overlays/fleet", "sweep") for each in built(MANIFESTS / folder)]
    labels = [template["metadata"]["labels"] for template in pods(documents)]
    # Labels that the operator adds.
    labels += [
        {**group["template"]["metadata"]["labels"], "ray.io/group": group["groupName"]}
        for document in documents
        for group, is_head in groups(document)
        if not is_head
    ]
    selectors = [each["spec"]["selector"] for each in documents if each["kind"] == "Service"]
    selectors += [found["matchLabels"] for found in under("podSelector", documents)]
    selectors += [found["matchLabels"] for found in under("selector", documents) if "matchLabels" in found]
    assert len(selectors) > 10
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector
    ports = [list(under("port", each["spec"]["ingress"])) for each in documents if each["metadata"]["name"] == "ray"]
    assert ports == [[8000, 8080, 8000]]


def test_addresses_are_those_of_services_whose_pods_listen_and_admit_clients() -> None:
    documents = [each for folder in ("overlays/fleet", "sweep") for each in built(MANIFESTS / folder)]
    services = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "Service"}
    policies = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "NetworkPolicy"}
    for name, service in services.items():
        (port,) = [each["port"] for each in service["ports"]]
        (pod,) = [each for each in pods(documents) if service["selector"].items() <= each["metadata"]["labels"].items()]
        assert [each["containerPort"] for each in pod["spec"]["containers"][0]["ports"]] == [port]
        policy = policies[name]
        assert policy["podSelector"]["matchLabels"] == service["selector"]
        assert [each["port"] for rule in policy["ingress"] for each in rule["ports"]] == [port]
        used = set(re.findall(rf"\b{name}:(\d{{4,}})", str(documents) + (MANIFESTS / "README.md").read_text()))
        assert used == {str(port)}


def test_the_autoscaler_can_write_where_the_head_can() -> None:
    for document in built(MANIFESTS / "base") + built(MANIFESTS / "sweep"):
        for options, head in zip(under("autoscalerOptions", document), under("headGroupSpec", document), strict=True):
            mounts = head["template"]["spec"]["containers"][0]["volumeMounts"]
            assert [each for each in mounts if each["mountPath"] == "/tmp"] == options["volumeMounts"]
            (home,) = [each["value"] for each in options["env"] if each["name"] == "HOME"]
            assert home.startswith("/tmp/")


def test_pods_are_confined_and_name_what_exists() -> None:
    documents = [each for folder in ("overlays/fleet", "sweep") for each in built(MANIFESTS / folder)]
    claims = {each["metadata"]["name"] for each in documents if each["kind"] == "PersistentVolumeClaim"}
    text = (MANIFESTS / "README.md").read_text()
    found = [template["spec"] for template in pods(documents)]
    assert len(found) > 8
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        # Otherwise each start of a pod sets the owner of every file of the volume.
        assert pod["securityContext"].get("fsGroupChangePolicy") == "OnRootMismatch" or not named(pod)
        # Otherwise a service named `mlflow` sets MLFLOW_PORT to a URL, and so on, in every pod.
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert set(mounted) <= volumes_of(pod)
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"requests", "limits"}
            assert not container["image"].endswith(":latest")
        assert named(pod) <= claims
    secrets = set(re.findall(r"gtvray-secrets', 'key': '([\w-]+)'", str(documents)))
    assert secrets
    assert all(f"--from-literal={key}=" in text for key in secrets), secrets


def test_endpoint_configuration_matches_the_shipped_one() -> None:
    (service,) = [each for each in built(MANIFESTS / "endpoint") if each["kind"] == "RayService"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    shipped = read_shipped_config()
    assert set(config) == set(shipped)
    (application,), (ours,) = config["applications"], shipped["applications"]
    assert (application["import_path"], set(application)) == (ours["import_path"], set(ours))
    parse_arguments(application["args"])


def test_the_sweep_s_command_is_valid() -> None:
    (job,) = built(MANIFESTS / "sweep")
    program, run_id, name, *words = shlex.split(job["spec"]["entrypoint"])
    # The same run id makes a restarted sweep resume.
    assert (program, run_id, name) == ("env", "GTVRAY_RUN_ID=first", "gtvray")
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    assert context.params["workspace"] == Path("/storage/runs")
    assert context.params["override"] == ["tracking.uri=http://mlflow:5000"]
