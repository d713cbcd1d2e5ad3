"""Checks the structure of compose files and Kubernetes manifests; Docker and Kubernetes are not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from .blocks import ReadmeError

Manifest = Mapping[str, Any]

_WORKLOADS: Final = frozenset({"Deployment", "StatefulSet", "DaemonSet"})
_PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")


def problem_of_manifest(document: Manifest, check_shell: Callable[[str], None]) -> str | None:
    """What is wrong with a compose file or a manifest; None also for any other YAML."""
    if "services" in document:
        return next(_problems_of_compose(document), None)
    if "apiVersion" in document or "kind" in document:
        return next(_problems_of_kubernetes(document, check_shell), None)
    return None


def _problems_of_compose(document: Manifest) -> Iterator[str]:
    services, volumes = document["services"], cast("Manifest", document.get("volumes") or {})
    for name, service in services.items():
        if not {"image", "build", "extends"} & set(service):
            yield f"the service {name} has no image"
        needed = service.get("depends_on", [])
        yield from (f"{name} depends on {other}" for other in needed if other not in services)
        for mount in service.get("volumes", []):
            source = str(mount).partition(":")[0]
            if "/" not in source and source not in volumes:
                yield f"{name} mounts the volume {source}, which is not declared"


def _problems_of_kubernetes(document: Manifest, check_shell: Callable[[str], None]) -> Iterator[str]:
    for key in ("apiVersion", "kind"):
        if not document.get(key):
            yield f"a manifest without {key}"
    if not document.get("metadata", {}).get("name"):
        yield f"the {document['kind']} has no metadata.name"
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "Service" and not spec.get("ports"):
        yield "the Service has no ports"
    pod = _pod_of(kind, spec)
    if pod is None:
        return
    if kind in _WORKLOADS:
        labels = spec["template"]["metadata"]["labels"]
        wanted = spec["selector"]["matchLabels"]
        if not wanted.items() <= labels.items():
            yield f"the selector {wanted} does not match the labels {labels}"
    if kind == "StatefulSet" and not spec.get("serviceName"):
        yield "the StatefulSet has no serviceName"
    claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    volumes = claims | {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod.get("containers", []) + pod.get("initContainers", []):
        yield from _problems_of_container(container, volumes, check_shell)


def _pod_of(kind: str, spec: Manifest) -> Manifest | None:
    if kind in _WORKLOADS or kind == "Job":
        return spec["template"]["spec"]
    if kind == "CronJob":
        return spec["jobTemplate"]["spec"]["template"]["spec"]
    return spec if kind == "Pod" else None


def _problems_of_container(
    container: Manifest, volumes: set[str], check_shell: Callable[[str], None]
) -> Iterator[str]:
    name = container.get("name")
    if not name or not container.get("image"):
        yield f"a container needs a name and an image: {name}"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"{name} mounts {mount['name']}, which is no volume"
    commands = [container.get("command")]
    for probe in (container[kind] for kind in _PROBES if kind in container):
        if not {"exec", "httpGet", "tcpSocket"} & set(probe):
            yield f"{name} has a probe without a check"
        commands.append(probe.get("exec", {}).get("command"))
    for command in filter(None, commands):
        try:
            _check(command, check_shell)
        except ReadmeError as error:
            yield str(error)


def _check(command: list[str], check_shell: Callable[[str], None]) -> None:
    if command[:2] in (["sh", "-c"], ["bash", "-c"]):
        check_shell(command[2])
    else:
        check_shell(" ".join(f"'{word}'" for word in command))
