"""A cluster in memory with the API server's behaviour that our modules rely on, for unit tests.

Not the real thing: no schema, no defaults, and apply merges only as far as our objects need. The modules
run against a real API server in `make test-cluster`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ClusterError

Object = dict[str, Any]
Key = tuple[str, str | None, str]


class FakeCluster:
    """Holds objects by (kind, namespace, name); counts versions; refuses as the API server does."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        # Who wrote each key of `data`: applying without a key removes it only if nobody else wrote it.
        self.owners: dict[Key, dict[str, set[str]]] = {}
        self.manager = "hearth"
        self.version = 0
        self.dry_run = False
        self.writes: list[str] = []
        self.before_replace: Callable[[], None] | None = None
        self.log_lines: dict[str, list[str]] = {}
        self.on_apply: Callable[[Object], None] | None = None
        self.unknown_kinds: set[str] = set()

    def connect(self, module: Any, field_manager: str) -> FakeCluster:
        """Stands where the modules call `Cluster(module, field_manager)`."""
        self.dry_run = module.check_mode
        self.manager = field_manager
        return self

    @staticmethod
    def _key(definition: Object) -> Key:
        meta = definition["metadata"]
        return definition["kind"], meta.get("namespace"), meta["name"]

    def _store(self, verb: str, definition: Object) -> Object:
        kind, namespace, name = key = self._key(definition)
        if namespace and ("Namespace", None, namespace) not in self.objects:
            raise ClusterError(f"cannot {verb} {kind} {namespace}/{name}: HTTP 404: namespaces {namespace!r} not found", 404)
        old = self.objects.get(key)
        new = copy.deepcopy(definition)
        volatile = ("resourceVersion", "generation", "uid", "creationTimestamp", "managedFields")
        meta = {field: value for field, value in new["metadata"].items() if field not in volatile}
        new["metadata"] = meta
        if old is not None:
            comparable = {**copy.deepcopy(old), "metadata": {f: v for f, v in old["metadata"].items() if f not in volatile}}
            status = comparable.pop("status", None)
            if comparable == {k: v for k, v in new.items() if k != "status"}:
                return copy.deepcopy(old)
            if status is not None:
                new.setdefault("status", status)
        self.version += 1
        generation = old["metadata"].get("generation", 0) + 1 if old else 1
        new["metadata"] = {
            **meta,
            "resourceVersion": str(self.version),
            "generation": generation,
            "creationTimestamp": f"t{self.version:06d}",
        }
        if not self.dry_run:
            self._own(key, f"{verb} {self.manager}", (old or {}).get("data") or {}, new.get("data") or {})
            self.objects[key] = new
            self.writes.append(f"{verb} {kind} {name}")
        return copy.deepcopy(new)

    def _own(self, key: Key, writer: str, before: Object, after: Object) -> None:
        owners = self.owners.setdefault(key, {})
        for name in [name for name in owners if name not in after]:
            del owners[name]
        for name, value in after.items():
            if before.get(name) != value:
                owners[name] = {writer}

    def _applied(self, definition: Object) -> Object:
        """The object with what others own in it, and their part in what is now ours too."""
        key, writer = self._key(definition), f"apply {self.manager}"
        owners, old = self.owners.get(key, {}), (self.objects.get(key) or {}).get("data") or {}
        wanted = definition.get("data") or {}
        others = {name: value for name, value in old.items() if name not in wanted and owners.get(name, set()) - {writer}}
        if not self.dry_run:
            for name in owners:
                owners[name] = owners[name] | {writer} if name in wanted else owners[name] - {writer}
        return {**definition, "data": {**others, **wanted}} if others else definition

    def knows(self, api_version: str, kind: str) -> bool:
        return kind not in self.unknown_kinds

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    def find(self, api_version: str, kind: str, selector: str, namespace: str | None = None) -> list[Object]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        return [
            copy.deepcopy(stored)
            for (stored_kind, stored_namespace, _), stored in self.objects.items()
            if stored_kind == kind
            and namespace in (None, stored_namespace)
            and wanted.items() <= (stored["metadata"].get("labels") or {}).items()
        ]

    def apply(self, definition: Object) -> Object:
        current = (self.objects.get(self._key(definition)) or {"metadata": {}})["metadata"].get("resourceVersion")
        if definition["metadata"].get("resourceVersion") not in (None, current):
            raise ClusterError("cannot apply: HTTP 409: the object has been modified", 409)
        stored = self._store("apply", self._applied(definition))
        if self.on_apply is not None and not self.dry_run:
            self.on_apply(self.objects[self._key(definition)])
        return stored

    def annotate(self, found: Object, annotations: dict[str, str]) -> None:
        current = self.objects.get(self._key(found))
        if current is not None and not self.dry_run:
            current["metadata"].setdefault("annotations", {}).update(annotations)
            self.writes.append(f"annotate {found['kind']} {found['metadata']['name']}")

    def create(self, definition: Object) -> Object:
        if self._key(definition) in self.objects:
            raise ClusterError("cannot create: HTTP 409: already exists", 409)
        return self._store("create", definition)

    def replace(self, definition: Object) -> Object:
        if self.before_replace is not None:
            self.before_replace()
        current = self.objects[self._key(definition)]["metadata"]["resourceVersion"]
        if definition["metadata"].get("resourceVersion") not in (None, current):
            raise ClusterError("cannot change: HTTP 409: the object has been modified", 409)
        return self._store("replace", definition)

    def merge(self, definition: Object, change: Object) -> Object:
        """A merge patch: mappings are merged, everything else is replaced."""

        def merged(old: Any, new: Any) -> Any:
            if not isinstance(old, dict) or not isinstance(new, dict):
                return new
            return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}

        return self._store("change", merged(self.objects[self._key(definition)], change))

    def delete(self, definition: Object, grace_s: int | None = None) -> None:
        if not self.dry_run:
            self.objects.pop(self._key(definition), None)
            self.writes.append(f"delete {definition['kind']} {definition['metadata']['name']}")

    def logs(self, namespace: str, pod: str, container: str, previous: bool, lines: int) -> list[str]:
        return self.log_lines.get(f"{pod}/previous" if previous else pod, [])[-lines:]

    def logs_since(self, namespace: str, pod: str, container: str, since: str, most_bytes: int) -> list[str]:
        return "\n".join(self.log_lines.get(pod, []))[:most_bytes].splitlines()
