"""The command line: help that teaches and comes at once, and commands that only look."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from client_helpers import FakeRouter, serving
from deploy_helpers import run_here, run_preble

from preble import __version__
from preble.errors import ConfigError
from preble_deploy.cli import COMMANDS
from preble_deploy.client_settings import DoctorSettings
from preble_deploy.doctor import Level, examine
from preble_deploy.models import HUB_PATTERNS, cache_directory, resolve_model
from preble_deploy.options import command
from preble_deploy.settings import RouterSettings, ServeSettings, WorkerSettings
from preble_deploy.sources import flag_names, variable

HEAVY = ("torch", "ray", "transformers", "grpc", "fastapi", "numpy", "pydantic", "yaml", "rich")


def test_help_lists_every_command_and_imports_next_to_nothing() -> None:
    code = (
        "import sys; from preble_deploy.cli import run; run(['--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    for name, summary in COMMANDS.items():
        assert name in done.stdout
        assert summary[:40] in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(capsys: pytest.CaptureFixture[str], name: str) -> None:
    outcome = run_here(capsys, name, "--help")
    assert outcome.status == 0
    assert f"Usage: preble {name}" in outcome.out


@pytest.mark.parametrize("model", [RouterSettings, WorkerSettings, ServeSettings, DoctorSettings])
def test_every_option_is_explained_with_default_and_variable(model: type) -> None:
    parameters = command(model, lambda settings: 0).__signature__.parameters  # type: ignore[attr-defined]
    assert parameters.keys() == model.model_fields.keys()
    for name, field in model.model_fields.items():
        (option,) = parameters[name].annotation.__metadata__
        assert len(field.description) > 10
        assert field.description.endswith(".")
        assert "default: " in option.help
        assert f"env: {variable(name)}" in option.help


@pytest.mark.parametrize(
    "flag",
    [
        "--host",
        "--port",
        "--served-model-name",
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--block-size",
        "--page-size",
        "--dtype",
        "--device",
        "--api-key",
        "--ssl-certfile",
        "--ssl-keyfile",
        "--seed",
        "--policy",
        "--worker-urls",
        "--log-level",
        "--kv-cache-tokens",
    ],
)
def test_names_that_users_of_other_servers_know(flag: str) -> None:
    known = {f for n, field in ServeSettings.model_fields.items() for f in flag_names(n, field)}
    assert flag in known


def test_flags_are_unambiguous() -> None:
    for model in (RouterSettings, WorkerSettings, ServeSettings, DoctorSettings):
        flags = [f for n, field in model.model_fields.items() for f in flag_names(n, field)]
        assert len(flags) == len(set(flags))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(capsys, "--version").out.strip() == __version__
    lines = run_here(capsys, "version").out.splitlines()
    assert lines[0] == f"preble {__version__}"
    assert any(line.startswith("torch ") for line in lines)


def test_no_arguments_print_help(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys)
    assert outcome.status == 0
    assert "doctor" in outcome.out


@pytest.mark.parametrize(
    "words", [("status",), ("route", "text"), ("drain", "w0"), ("status", "--watch", "1")]
)
def test_nobody_answers(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with socket.socket() as taken:  # Bound, but nobody listens.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = run_here(capsys, *words, "--router", address, "--timeout-seconds", "2")
    assert outcome.status == 1
    assert f"no router answers at {address} (see --router)" in outcome.complaint


def test_drain_tells_the_router_and_says_what_will_happen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    router = FakeRouter()
    with serving(router) as address:
        outcome = run_here(capsys, "drain", "w0", "--deadline", "25", "--router", address)
        assert outcome.status == 0
        assert outcome.out == (
            "preble: w0 drains; what still runs there after 25 s goes on elsewhere\n"
        )
        outcome = run_here(capsys, "drain", "w1", "--json", "--router", address)
        assert json.loads(outcome.out) == {"worker_id": "w1", "deadline_seconds": None}
        outcome = run_here(capsys, "drain", "w1", "--deadline", "-1", "--router", address)
        assert outcome.status == 2 and "--deadline is '-1'" in outcome.complaint
    soon, slowly = router.worker_calls
    assert (soon.worker_id, soon.deadline_seconds) == ("w0", 25.0)
    assert slowly.worker_id == "w1" and not slowly.HasField("deadline_seconds")


def test_drain_waits_until_the_worker_has_ended_even_if_it_is_started_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    router = FakeRouter(epochs=[3, 3, 3])
    with serving(router) as address:
        outcome = run_here(capsys, "drain", "worker-1", "--wait", "--router", address)
        assert outcome.out == "preble: worker-1 has ended\n"
        assert not router.epochs
        assert run_here(capsys, "drain", "w0", "--wait", "--router", address).status == 0


# Models


def test_demo_model_is_made_once_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREBLE_CACHE", str(tmp_path / "cache"))
    path = resolve_model("demo")
    assert path.parent == tmp_path / "cache"
    assert (path / "model.safetensors").is_file()
    before = (path / "config.json").stat().st_mtime_ns
    assert resolve_model("demo") == path
    assert (path / "config.json").stat().st_mtime_ns == before


def test_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREBLE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/preble")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "preble"


def test_directory_is_taken_if_it_is_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"which has no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"which has no tokenizer\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["nope", "./nope", "/no/pe", "a/b/c", "~/nope"])
def test_what_is_no_model(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed: demo, an existing directory, or a hub name"):
        resolve_model(name)


def test_hub_name_is_downloaded_without_pickles_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(resolve_model("demo"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_model("org/name@v1") == resolve_model("demo")
    assert asked == [("org/name", "v1", list(HUB_PATTERNS))]
    assert not any(
        pattern.endswith((".bin", ".py", ".pt", "*")) and pattern != "tokenizer*"
        for pattern in HUB_PATTERNS
    )


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        resolve_model("org/name")


# Doctor


def test_doctor_ends_with_a_request_through_a_whole_cluster() -> None:
    outcome = run_preble("doctor", "--port", "0")
    assert outcome.status == 0, outcome.out
    lines = [line for line in outcome.out.splitlines() if not line.startswith(" ")]
    assert all(line.split()[0] in {"ok", "warn"} for line in lines)
    assert "self-test" in lines[-1]


def test_doctor_names_what_is_wrong_and_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = DoctorSettings(model="./nope", port=port, grpc_port=0)
        findings = {finding.subject: finding for finding in examine(settings)}
    assert findings["ports"].level is Level.FAIL
    assert f"--port is {port}" in findings["ports"].words
    assert findings["model"].level is Level.FAIL
    assert findings["self-test"].level is Level.OK, "it does not need that model"
    assert all(finding.advice for finding in findings.values() if finding.level is not Level.OK)


def test_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd_check(_: DoctorSettings) -> None:
        raise OSError("disk on fire")

    checks: tuple[Callable[..., object], ...] = (odd_check,)
    monkeypatch.setattr("preble_deploy.doctor.CHECKS", checks)
    (finding,) = examine(DoctorSettings())
    assert (finding.level, finding.words) == (Level.FAIL, "disk on fire")


def test_replay_tells_a_bad_line_by_file_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    good = {"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [1]}
    trace.write_text(json.dumps(good) + "\n{\n")
    outcome = run_here(capsys, "replay", str(trace))
    assert outcome.status == 2
    assert "trace.jsonl:2" in outcome.complaint
