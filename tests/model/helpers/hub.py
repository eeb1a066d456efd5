"""A hub of folders in place of huggingface_hub, which records what it is asked for."""

import fnmatch
import shutil
import sys
import types
from pathlib import Path

import safetensors


class Hub:
    """Repositories are folders; what is downloaded is copied to a cache.

    Attributes:
        repositories: folders by id.
        requests: what was asked for: ("list", id), ("head", id, file), or ("get", id, files).
        offline: whether there is no connection.
    """

    def __init__(self, cache, **repositories):
        self.cache, self.repositories = Path(cache), repositories
        self.requests, self.options, self.offline = [], [], False

    def install(self, monkeypatch):
        module = types.ModuleType("huggingface_hub")
        module.snapshot_download, module.HfApi = self.snapshot_download, lambda: self
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return self

    def files(self, repository):
        folder = self.repositories[repository]
        return {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def downloaded(self, *suffixes):
        """Names of the files that were downloaded, in order."""
        names = [name for kind, _, *rest in self.requests if kind == "get" for name in rest[0]]
        return [name for name in names if name.endswith(suffixes)]

    def _reach(self, repository):
        if self.offline or repository not in self.repositories:
            raise OSError("no connection" if self.offline else "404 Client Error")

    def list_repo_files(self, repository, *, revision):
        self.requests.append(("list", repository))
        self._reach(repository)
        return list(self.files(repository))

    def parse_safetensors_file_metadata(self, repository, file, *, revision):
        self.requests.append(("head", repository, file))
        self._reach(repository)
        with safetensors.safe_open(self.files(repository)[file], "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            tensors = {
                name: types.SimpleNamespace(shape=part.get_shape(), dtype=part.get_dtype())
                for name, part in slices.items()
            }
        return types.SimpleNamespace(tensors=tensors)

    def snapshot_download(self, repository, *, allow_patterns, revision, local_files_only):
        target = self.cache / repository.replace("/", "--")
        self.options.append((revision, local_files_only))
        if local_files_only or self.offline:
            if not target.exists():
                raise OSError("not in the cache")
            return str(target)
        self._reach(repository)
        found = [
            name
            for name in self.files(repository)
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
        ]
        new = [name for name in found if not (target / name).exists()]
        self.requests.append(("get", repository, new))
        for name in new:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.files(repository)[name], target / name)
        return str(target)
