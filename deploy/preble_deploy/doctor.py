"""Finds out whether this machine can serve, and says what to do where it cannot.

Each check is a function from the settings to a finding. The last one is a whole cluster: a router
and a worker with a simulated engine in this process, and one request through both over sockets.
"""

import asyncio
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from preble.errors import ConfigError
from preble_deploy.client_settings import DoctorSettings
from preble_deploy.devices import num_cores, visible_gpus
from preble_deploy.models import DEMO, cache_directory, resolve_model
from preble_deploy.ports import free_port
from preble_deploy.settings import LOOPBACK

ROUTER_LIBRARIES = ("grpcio", "protobuf", "fastapi", "uvicorn", "tokenizers", "numpy")
WORKER_LIBRARIES = ("torch", "transformers", "safetensors")
PYTHON_MIN = (3, 11)
OPEN_FILES_MIN = 4096
MIB, GIB = 1 << 20, 1 << 30
SELF_TEST_SECONDS = 60.0


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `advice` is what to do about it, "" where all is well."""

    level: Level
    subject: str
    words: str
    advice: str = ""


def examine(settings: DoctorSettings) -> Iterator[Finding]:
    """All findings, each as soon as it is known. A check that breaks is a finding too."""
    for check in CHECKS:
        try:
            yield check(settings)
        except Exception as error:
            subject = check.__name__.strip("_").replace("_", " ")
            words = " ".join(str(error).split()) or type(error).__name__
            yield Finding(Level.FAIL, subject, words, "see the message; please report it if odd")


def _python(_: DoctorSettings) -> Finding:
    words = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < PYTHON_MIN:
        return Finding(Level.FAIL, "python", words, "Preble needs Python 3.11 or later")
    return Finding(Level.OK, "python", words)


def _libraries(_: DoctorSettings) -> Finding:
    missing = [name for name in ROUTER_LIBRARIES if not _version(name)]
    if missing:
        advice = "pip install 'preble[router]'"
        return Finding(Level.FAIL, "libraries", f"missing: {', '.join(missing)}", advice)
    return Finding(Level.OK, "libraries", _versions(("preble", *ROUTER_LIBRARIES)))


def _engine_libraries(_: DoctorSettings) -> Finding:
    missing = [name for name in WORKER_LIBRARIES if not _version(name)]
    if missing:
        advice = "pip install 'preble[worker]'; until then only --engine simulated works"
        return Finding(Level.WARN, "engine", f"missing: {', '.join(missing)}", advice)
    return Finding(Level.OK, "engine", _versions(WORKER_LIBRARIES))


def _gpus(_: DoctorSettings) -> Finding:
    names = visible_gpus()
    words = f"{len(names)} GPUs visible, {num_cores()} CPU cores"
    if not names:
        return Finding(Level.OK, "devices", f"{words}: workers compute on the CPU")
    if not _version("torch"):
        return Finding(Level.WARN, "devices", words, "torch is missing, so nobody can use them")
    # In a process of its own: CUDA, once initialised, would take memory here for good.
    code = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seen, cuda = (result.stdout.split() or ["0", ""])[:2]
    if int(seen) < len(names):
        advice = "install a torch that was built for the driver's CUDA (see pytorch.org)"
        return Finding(Level.WARN, "devices", f"{words}, torch sees {seen}", advice)
    return Finding(Level.OK, "devices", f"{words}, CUDA {cuda}")


def _ray(_: DoctorSettings) -> Finding:
    found = _version("ray")
    if not found:
        return Finding(Level.OK, "ray", "not installed; only --ray needs it")
    return Finding(Level.OK, "ray", found)


def _ports(settings: DoctorSettings) -> Finding:
    grpc_port = settings.grpc_port
    if grpc_port is None:
        grpc_port = settings.port + 1 if settings.port else 0
    try:
        free_port(settings.host, settings.port, "--port")
        free_port(settings.host, grpc_port, "--grpc-port")
    except ConfigError as error:
        return Finding(Level.FAIL, "ports", str(error), "or end what listens there")
    return Finding(Level.OK, "ports", f"{settings.port} and {grpc_port} are free")


def _open_files(_: DoctorSettings) -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    words = "unlimited" if limit == resource.RLIM_INFINITY else f"limit {limit}"
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES_MIN:
        advice = "each client is an open file; raise it, e.g. `ulimit -n 65536`"
        return Finding(Level.WARN, "open files", words, advice)
    return Finding(Level.OK, "open files", words)


def _model(settings: DoctorSettings) -> Finding:
    try:
        path = resolve_model(settings.model)
    except ConfigError as error:
        return Finding(Level.FAIL, "model", str(error), "see `preble serve --help` for MODEL")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    kind = ", ".join(config.get("architectures") or ["unknown architecture"])
    weights = _weight_bytes(path)
    words = f"{settings.model} at {path}: {kind}, {weights / MIB:,.0f} MiB of weights"
    if not weights:
        advice = "no *.safetensors there: only --engine simulated can serve it"
        return Finding(Level.WARN, "model", words, advice)
    return Finding(Level.OK, "model", words)


def _memory(settings: DoctorSettings) -> Finding:
    available = _available_bytes()
    words = f"{available / GIB:.1f} GiB of main memory available"
    if visible_gpus():
        return Finding(Level.OK, "memory", words)
    try:
        weights = _weight_bytes(resolve_model(settings.model))
    except ConfigError:
        weights = 0
    # Weights as float32 at most twice their size on disk, and torch itself.
    needed = 2 * weights + GIB
    if available < needed:
        advice = f"one worker of this model needs about {needed / GIB:.1f} GiB"
        return Finding(Level.WARN, "memory", words, advice)
    return Finding(Level.OK, "memory", words)


def _cache(_: DoctorSettings) -> Finding:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    words = f"{directory}, {free / GIB:.1f} GiB free"
    if not os.access(directory, os.W_OK):
        return Finding(Level.FAIL, "cache", f"{words}, not writable", "set PREBLE_CACHE")
    return Finding(Level.OK, "cache", words)


def _self_test(_: DoctorSettings) -> Finding:
    started = time.perf_counter()
    text = asyncio.run(asyncio.wait_for(_one_request(), SELF_TEST_SECONDS))
    took = time.perf_counter() - started
    words = f"router, link, worker and back: {len(text)} characters in {took:.1f} s"
    return Finding(Level.OK, "self-test", words)


async def _one_request() -> str:
    """The text that a simulated worker answers through a router, over HTTP."""
    from preble_router.config import RouterConfig
    from preble_router.server import RouterServer
    from preble_worker.config import WorkerConfig
    from preble_worker.server import WorkerServer

    path = resolve_model(DEMO)
    router = RouterServer(
        RouterConfig(model=DEMO, model_path=path, host=LOOPBACK, port=0, grpc_port=0)
    )
    await router.start()
    worker = WorkerServer(
        WorkerConfig(
            model=DEMO,
            model_path=path,
            engine="simulated",
            worker_id="self-test",
            routers=(router.grpc_address,),
        )
    )
    try:
        await worker.start()
        while not router.dispatcher.is_ready:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)
        return await asyncio.to_thread(_complete, router.http_address)
    finally:
        await router.stop()
        await worker.stop(drain_seconds=0.0)


def _complete(address: str) -> str:
    body = {"model": DEMO, "prompt": "Are you well?", "max_tokens": 8, "ignore_eos": True}
    request = urllib.request.Request(
        f"http://{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=SELF_TEST_SECONDS) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _versions(libraries: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in libraries)


def _weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _available_bytes() -> int:
    """What can be had without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        return next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


CHECKS: tuple[Callable[[DoctorSettings], Finding], ...] = (
    _python,
    _libraries,
    _engine_libraries,
    _gpus,
    _ray,
    _ports,
    _open_files,
    _cache,
    _model,
    _memory,
    _self_test,
)
