"""One validated model for flags, variables and YAML: precedence, and what a mistake is told."""

import os
from pathlib import Path

import pytest
from deploy_helpers import run_here, write

from preble.errors import ConfigError
from preble_deploy.client_settings import ReplaySettings, StatusSettings
from preble_deploy.options import command_line, without_settings
from preble_deploy.settings import RouterSettings, ServeSettings, WorkerSettings
from preble_deploy.sources import Settings, load
from preble_router.policies import POLICY_NAMES as ROUTING_POLICIES
from preble_worker.policies import POLICY_NAMES as LOCAL_POLICIES


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PREBLE_"):
            monkeypatch.delenv(name)


def complaint_of(model: type[Settings], **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(model, flags)
    return str(caught.value)


# Precedence


def test_flags_win_over_variables_over_yaml_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "c.yaml", "port: 1000\nmax-live-requests: 10\nseed: 3\n")
    monkeypatch.setenv("PREBLE_PORT", "2000")
    monkeypatch.setenv("PREBLE_SEED", "4")
    settings = load(RouterSettings, {"config": str(file), "port": "3000"})
    assert (settings.port, settings.seed, settings.max_live_requests) == (3000, 4, 10)
    assert settings.max_attempts == RouterSettings.model_fields["max_attempts"].default


def test_config_may_come_from_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "c.yaml", "policy: round_robin\n")
    monkeypatch.setenv("PREBLE_CONFIG", str(file))
    assert load(RouterSettings, {}).policy == "round_robin"


def test_section_of_a_command_holds_for_it_alone_and_wins(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.yaml",
        "log-level: warning\nport: 9000\nworker:\n  port: 7000\n  dtype: float32\n",
    )
    flags = {"config": str(file)}
    assert load(RouterSettings, flags).port == 9000
    worker = load(WorkerSettings, flags)
    assert (worker.port, worker.dtype, worker.log_level) == (7000, "float32", "warning")


def test_options_of_other_commands_are_no_mistake_at_the_top_level(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "max-num-seqs: 8\nwatch: 2\n")
    assert load(WorkerSettings, {"config": str(file)}).max_num_seqs == 8
    assert load(StatusSettings, {"config": str(file)}).watch == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "port:\n", "{}"])
def test_empty_files_and_values_leave_the_defaults(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "c.yaml", text)
    assert load(RouterSettings, {"config": str(file)}).port == 8000


@pytest.mark.parametrize("given", [["a:1", "b:2"], ["a:1,b:2"], ["grpc://a:1 b:2"]])
def test_lists_may_be_repeated_or_separated(given: list[str]) -> None:
    assert load(RouterSettings, {"worker_urls": given}).worker_urls == ("a:1", "b:2")


def test_lists_in_variables_and_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBLE_WORKER_URLS", "a:1,b:2")
    assert load(RouterSettings, {}).worker_urls == ("a:1", "b:2")
    monkeypatch.delenv("PREBLE_WORKER_URLS")
    file = write(tmp_path / "c.yaml", "worker-urls: [a:1, b:2]\napi_key: k\n")
    settings = load(RouterSettings, {"config": str(file)})
    assert settings.worker_urls == ("a:1", "b:2")
    assert settings.api_key == ("k",)


# Mistakes


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        (RouterSettings, {"port": "abc"}, "--port is 'abc'; allowed: a whole number from 0 to"),
        (RouterSettings, {"port": "65536"}, "--port is '65536'; allowed: a whole number from 0"),
        (RouterSettings, {"max_attempts": "0"}, "--max-attempts is '0'; allowed: a whole number"),
        (RouterSettings, {"silence_seconds": "0"}, "allowed: a number above 0"),
        (RouterSettings, {"drain_seconds": "-1"}, "--drain-seconds is '-1'; allowed: a number"),
        (RouterSettings, {"worker_urls": ["http://a:1"]}, "'http://a:1' is no gRPC address"),
        (RouterSettings, {"worker_urls": ["a:1", "b"]}, "'b' is no gRPC address; allowed: HOST:P"),
        (WorkerSettings, {"dtype": "int4"}, "--dtype is 'int4'; allowed: auto, float32, bfloat16"),
        (WorkerSettings, {"engine": "vllm"}, "--engine is 'vllm'; allowed: torch, simulated"),
        (WorkerSettings, {"device": "gpu"}, "--device is 'gpu'"),
        (WorkerSettings, {"page_size": "0"}, "--page-size is '0'; allowed: a whole number from 1"),
        (WorkerSettings, {"ttft_slo": "0"}, "--ttft-slo"),
        (WorkerSettings, {"tbt_slo": "inf"}, "--tbt-slo"),
        (WorkerSettings, {"kv_tiers": ["host,disk"]}, "'disk' is no tier; allowed: host, int8, h"),
        (WorkerSettings, {"router": ["x:99999"]}, "'x:99999' is no gRPC address"),
        (WorkerSettings, {"ssl_certfile": "c"}, "--ssl-certfile and --ssl-keyfile must be given"),
        (ServeSettings, {"workers": "0"}, "--workers is '0'; allowed: a whole number from 1"),
        (ServeSettings, {"local": True, "ray": "auto"}, "--local and --ray exclude each other"),
        (ServeSettings, {"detach": True}, "--detach needs --ray"),
        (ServeSettings, {"ray": "ray://a:1"}, "--ray is 'ray://a:1'; allowed: auto, local or HO"),
        (ServeSettings, {"name": "a b"}, "--name is 'a b'"),
        (ReplaySettings, {}, "TRACE is missing"),
        (ReplaySettings, {"trace": "t", "speed": "0"}, "--speed is '0'; allowed: a number above"),
    ],
)
def test_wrong_flags_name_option_value_and_what_is_allowed(
    model: type[Settings], flags: dict[str, object], words: str
) -> None:
    assert words in complaint_of(model, **flags)


def test_policies_are_those_that_exist() -> None:
    assert complaint_of(RouterSettings, policy="bset") == (
        f"--policy is 'bset'; allowed: {', '.join(ROUTING_POLICIES)}"
    )
    assert complaint_of(WorkerSettings, local_policy="x") == (
        f"--local-policy is 'x'; allowed: {', '.join(LOCAL_POLICIES)}"
    )
    for name in ROUTING_POLICIES:
        assert load(RouterSettings, {"policy": name}).policy == name


def test_wrong_variable_is_named_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Kubernetes sets such a variable for a service that is named preble.
    monkeypatch.setenv("PREBLE_PORT", "tcp://10.0.0.1:8000")
    assert complaint_of(RouterSettings) == (
        "PREBLE_PORT is 'tcp://10.0.0.1:8000'; allowed: a whole number from 0 to 65535"
    )


def test_several_mistakes_are_told_together() -> None:
    words = complaint_of(WorkerSettings, port="x", dtype="y")
    assert "--port is 'x'" in words
    assert "--dtype is 'y'" in words
    assert "\n" not in words


def test_secrets_are_not_repeated() -> None:
    assert "hush" not in complaint_of(RouterSettings, api_key={"hush": 1}, port="x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: 80\nprot: 1\n", ":2: prot is no option; did you mean port?"),
        ("worker:\n  dtypo: a\n", ":2: dtypo is no option of `preble worker`; did you mean dtype?"),
        ("router:\n  dtype: a\n", ":2: dtype is no option of `preble router`"),
        ("port: 80\nseed: 1\nport: 81\n", ":3: port stands twice"),
        ("port: x\n", ":1: port is 'x'; allowed: a whole number from 0 to 65535"),
        ("seed: 1\nmax_attempts: 0\n", ":2: max_attempts is 0; allowed: a whole number from 1"),
        ("router:\n  policy: bset\n", ":2: policy is 'bset'; allowed: round_robin"),
        ("a: [1\nb: 2\n", ":2: not valid YAML"),
        ("- port\n", ":1: expected `option: value` lines"),
        ("port\n", ":1: expected `option: value` lines"),
        ("1: 2\n", ":1: 1 is no option"),
        ("port: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_wrong_files_name_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path / "cluster.yaml", text)
    complaint = complaint_of(RouterSettings, config=str(file))
    assert complaint.startswith(str(file))
    assert words in complaint
    assert "\n" not in complaint


def test_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in complaint_of(RouterSettings, config=str(tmp_path / "none.yaml"))
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"port: \xff\n")
    assert "not UTF-8" in complaint_of(RouterSettings, config=str(binary))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("worker", "--prot", "1"), "No such option: --prot"),
        (("worker", "--port"), "--port"),
        (("worker", "--port", "x"), "--port is 'x'; allowed"),
        (("wroker",), "No such command 'wroker'"),
        (("router", "a", "b"), "unexpected extra argument"),
        (("serve", "no/such/model/here"), "MODEL is 'no/such/model/here'; allowed: demo"),
        (("serve", "--engine", "simulated", "--host", "203.0.113.1"), "--host is '203.0.113.1'"),
    ],
)
def test_command_line_says_it_in_one_line_and_exits_with_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    outcome = run_here(capsys, *words)
    assert outcome.status == 2
    assert outcome.complaint.startswith("preble: ")
    assert complaint in outcome.complaint


# What children are given


def test_command_line_of_settings_gives_the_same_settings() -> None:
    settings = load(
        WorkerSettings,
        {
            "model": "/models/m",
            "router": ["a:1,b:2"],
            "page_size": "32",
            "kv_tiers": "host int8",
            "enable_prefix_caching": False,
            "worker_token": "hush",
            "ssl_certfile": "c",
            "ssl_keyfile": "k",
        },
    )
    arguments, variables = command_line(settings)
    assert arguments[0] == "/models/m"
    assert "--no-enable-prefix-caching" in arguments
    assert "hush" not in " ".join(arguments), "everybody can read a command line"
    assert variables == {"PREBLE_WORKER_TOKEN": "hush"}
    given = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--kv-tiers"]
    assert " ".join(given).replace(",", " ").split() == ["host", "int8"]


def test_children_do_not_read_the_variables_of_their_parent_again() -> None:
    environment = {"PREBLE_PORT": "1", "PREBLE_CONFIG": "x", "PREBLE_CACHE": "c", "PATH": "p"}
    assert without_settings(environment) == {"PREBLE_CACHE": "c", "PATH": "p"}


# What the processes are given


def test_router_config_carries_every_option() -> None:
    config = load(
        RouterSettings,
        {"model": "m", "port": "9000", "policy": "round_robin", "api_key": ["a,b"]},
    ).router_config(Path("/models/m"))
    assert (config.model, config.model_path) == ("m", Path("/models/m"))
    assert (config.port, config.grpc_port) == (9000, 9001)
    assert config.policy == "round_robin"
    assert config.api_keys == ("a", "b")
    assert config.host == "127.0.0.1", "nothing listens beyond loopback unless asked"


def test_worker_config_carries_every_option() -> None:
    config = load(
        WorkerSettings,
        {
            "max_model_len": "100",
            "max_num_batched_tokens": "64",
            "local_policy": "fcfs",
            "kv_tiers": "host,hidden",
            "host_kv_tokens": "3200",
            "copy_rate": "1e9",
            "ttft_slo": "0.5",
            "tbt_slo": "0.25",
        },
    ).config_of(Path("/models/m"))
    assert (config.kv_tiers, config.host_kv_tokens) == (("host", "hidden"), 3200)
    assert config.copy_rate == 1e9
    assert (config.ttft_slo_seconds, config.tbt_slo_seconds) == (0.5, 0.25)
    assert (config.context_tokens, config.max_batch_tokens) == (100, 64)
    assert config.policy == "fcfs"
    assert config.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"model": "demo"}, "demo"),
        ({"model": "org/name"}, "org/name"),
        ({"model": "demo", "served_model_name": "chat"}, "chat"),
    ],
)
def test_name_of_the_served_model(flags: dict[str, object], name: str) -> None:
    assert load(RouterSettings, flags).model_name == name


def test_directory_is_served_under_its_own_name(tmp_path: Path) -> None:
    directory = tmp_path / "llama"
    directory.mkdir()
    assert load(RouterSettings, {"model": str(directory)}).model_name == "llama"
