"""The repository checks its own rules: who imports whom, what stays light, what stays short."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "preble": ROOT / "preble",
    "preble_router": ROOT / "router" / "preble_router",
    "preble_worker": ROOT / "worker" / "preble_worker",
    "preble_loadgen": ROOT / "loadgen" / "preble_loadgen",
    "preble_deploy": ROOT / "deploy" / "preble_deploy",
}
MAY_IMPORT = {
    "preble": set(),
    "preble_router": {"preble"},
    "preble_worker": {"preble"},
    "preble_loadgen": {"preble", "preble_router", "preble_worker"},
    "preble_deploy": {"preble", "preble_router", "preble_worker", "preble_loadgen"},
}
PURE = [
    "preble/types.py",
    "preble/events.py",
    "preble/errors.py",
    "preble/page_keys.py",
    "preble/leaf_digest.py",
    "preble/prefix_tree.py",
    "preble/cost.py",
    "preble/fair_share.py",
    "preble/first_principles.py",
    "router/preble_router/stimuli.py",
    "router/preble_router/scheduler.py",
    "router/preble_router/admission.py",
    "router/preble_router/event_feed.py",
    "router/preble_router/holding.py",
    "router/preble_router/host_tree.py",
    "router/preble_router/tree_check.py",
    "router/preble_router/tree_limit.py",
    "router/preble_router/tree_repair.py",
    "router/preble_router/tree_sync.py",
    "router/preble_router/liveness.py",
    "router/preble_router/pace.py",
    "router/preble_router/poison.py",
    "router/preble_router/fair_queues.py",
    "router/preble_router/priority_queues.py",
    "router/preble_router/ramp_up.py",
    "router/preble_router/retry_budget.py",
    "router/preble_router/slow_readers.py",
    "router/preble_router/step_pace.py",
    *(
        f"router/preble_router/lengths/{name}.py"
        for name in (
            "accuracy",
            "forecasts",
            "max_tokens",
            "ngrams",
            "predictor",
            "prefix_mean",
            "retrieval",
        )
    ),
    "router/preble_router/policies",
    "worker/preble_worker/batch.py",
    "worker/preble_worker/completion.py",
    "worker/preble_worker/logprobs.py",
    "worker/preble_worker/scheduler.py",
    "worker/preble_worker/page_cache.py",
    "worker/preble_worker/length_estimate.py",
    "worker/preble_worker/simulated_tokens.py",
    "worker/preble_worker/policies",
    "worker/preble_worker/preemption.py",
    "worker/preble_worker/swap_ahead.py",
    "worker/preble_worker/mixed_plan.py",
    "loadgen/preble_loadgen/fit.py",
    "loadgen/preble_loadgen/steady.py",
    "loadgen/preble_loadgen/profile_plan.py",
    "loadgen/preble_loadgen/oracle.py",
    "loadgen/preble_loadgen/report.py",
    "loadgen/preble_loadgen/objectives.py",
    "loadgen/preble_loadgen/goodput.py",
    "loadgen/preble_loadgen/tournament/worker_figures.py",
    "loadgen/preble_loadgen/simulator",
    "loadgen/preble_loadgen/workloads",
    "loadgen/preble_loadgen/analysis.py",
    "loadgen/preble_loadgen/closed_loop.py",
    "loadgen/preble_loadgen/prompt_pieces.py",
    "loadgen/preble_loadgen/reuse_distance.py",
]
PURE_MAY_IMPORT = {"numpy", "xxhash", "sortedcontainers"}
IMPURE_STANDARD = {
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "queue",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
}
MAX_LINES = 400


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if "v1" not in path.parts:
                yield package, path


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def pure_files() -> list[Path]:
    files: list[Path] = []
    for name in PURE:
        path = ROOT / name
        assert path.exists(), f"{name} is listed as pure and does not exist"
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


def test_layers() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package, path in sources()
        for line, name in imports(path)
        if (head := name.split(".")[0]) in PACKAGES
        and head != package
        and head not in MAY_IMPORT[package]
    ]
    assert not wrong, wrong


def test_pure_files_import_only_what_is_pure() -> None:
    wrong = []
    for path in pure_files():
        for line, name in imports(path):
            head = name.split(".")[0]
            known = head in PACKAGES or head in PURE_MAY_IMPORT
            standard = head in sys.stdlib_module_names and head not in IMPURE_STANDARD
            if not (known or standard):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, wrong


def test_pure_files_are_pure_all_the_way() -> None:
    """A pure file imports, of our own packages, pure files only (types may be named anywhere)."""
    pure = {path.relative_to(ROOT) for path in pure_files()}
    wrong = []
    for path in pure_files():
        for line, name in imports(path):
            package, _, rest = name.partition(".")
            if package not in PACKAGES or not rest:
                continue
            target = PACKAGES[package] / rest.replace(".", "/")
            file = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
            if file.exists() and file.relative_to(ROOT) not in pure and not is_pure(file):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, wrong


def is_pure(path: Path) -> bool:
    """Whether a file that nobody listed keeps the same rules."""
    heads = {name.split(".")[0] for _, name in imports(path)}
    allowed = set(PACKAGES) | PURE_MAY_IMPORT | (set(sys.stdlib_module_names) - IMPURE_STANDARD)
    # Options carry paths and TLS file names; they are values, read from nowhere.
    return heads - {"pathlib"} <= allowed


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for _, path in sources()
    }
    assert not {name: n for name, n in lengths.items() if n > MAX_LINES}


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("preble", {"torch", "ray", "transformers", "grpc", "numpy"}),
        ("preble.client", {"torch", "ray", "transformers"}),
        ("preble_router.server", {"torch", "ray", "transformers"}),
        ("preble_worker.server", {"torch", "ray", "transformers"}),
        ("preble_deploy.cli", {"torch", "ray", "transformers", "grpc", "fastapi", "numpy"}),
    ],
)
def test_imports_stay_light(module: str, never: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert not never & set(loaded.stdout.split())


def test_nothing_is_left_unfinished() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for _, path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"NotImplementedError|TODO|FIXME|XXX", line)
    ]
    assert not wrong, wrong


def test_public_functions_and_classes_say_what_they_are_for() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for _, path in sources()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not _explained_elsewhere(path)
    ]
    assert not wrong, wrong


def _explained_elsewhere(path: Path) -> bool:
    """Translators and plain facts say all in their names; a policy's rule heads its file."""
    return path.name in {"wire.py", "stimuli.py"} or path.parent.name == "policies"


def test_the_project_speaks_only_of_itself() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json"} and path.exists():
            found = re.search(r"(?<![\w.])/(home|root|Users)/\w", path.read_text())
            assert not found or name == "tests/test_layout.py", f"{name}: {found}"
