"""What is printed once a cluster is ready: where it is, and two ways to try it at once."""

import json
from pathlib import Path


def banner(
    *,
    model: str,
    model_path: Path,
    url: str,
    grpc: str,
    workers: int,
    policy: str,
    has_key: bool,
    ending: str,
) -> str:
    """Addresses, a curl line and an openai snippet that can be pasted as they are."""
    plural = "" if workers == 1 else "s"
    return f"""
Preble serves {model!r} on {workers} worker{plural}, policy {policy}.

  OpenAI API  {url}/v1
  gRPC        {grpc}
  Cluster     {url}/cluster   Metrics  {url}/metrics

Try it:

{_curl(model, model_path, url, has_key)}

or in Python (pip install openai):

{_snippet(model, model_path, url, has_key)}

{ending}
"""


def _curl(model: str, model_path: Path, url: str, has_key: bool) -> str:
    key = ' -H "Authorization: Bearer $PREBLE_API_KEY"' if has_key else ""
    body: dict[str, object] = {"model": model}
    if _chats(model_path):
        path = "chat/completions"
        body["messages"] = [{"role": "user", "content": "Hello!"}]
    else:
        path = "completions"
        body["prompt"] = "Once upon a time"
    body |= {"max_tokens": 64, "stream": True}
    insecure = " -k" if url.startswith("https") else ""
    return (
        f"  curl -N{insecure} {url}/v1/{path} -H 'Content-Type: application/json'{key} \\\n"
        f"    -d '{json.dumps(body)}'"
    )


def _snippet(model: str, model_path: Path, url: str, has_key: bool) -> str:
    key = 'os.environ["PREBLE_API_KEY"]' if has_key else '"none"'
    imports = ["import os"] if has_key else []
    if _chats(model_path):
        call = [
            "stream = client.chat.completions.create(",
            f'    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}],',
            "    max_tokens=64, stream=True)",
            "for chunk in stream:",
            '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
        ]
    else:
        call = [
            "stream = client.completions.create(",
            f'    model="{model}", prompt="Once upon a time", max_tokens=64, stream=True)',
            "for chunk in stream:",
            '    print(chunk.choices[0].text, end="", flush=True)',
        ]
    lines = [
        *imports,
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key={key})',
        *call,
    ]
    return "\n".join(f"  {line}" for line in lines)


def _chats(model_path: Path) -> bool:
    """Whether the model has a chat template; a base model has none."""
    if (model_path / "chat_template.jinja").is_file():
        return True
    file = model_path / "tokenizer_config.json"
    return file.is_file() and "chat_template" in json.loads(file.read_text(encoding="utf-8"))
