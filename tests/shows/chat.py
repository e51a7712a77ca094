"""Bring up a cluster with one command, chat with it through the `openai` client, and end it."""

import sys
import time

from openai import OpenAI
from served_cluster import ServedCluster


def main() -> int:
    with ServedCluster("--workers", "2") as cluster:
        print(f"serving after {cluster.started_seconds:.1f} s at {cluster.url}")
        client = OpenAI(base_url=f"{cluster.url}/v1", api_key="none")
        start = time.monotonic()
        first = None
        num_chunks = 0
        for chunk in client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Tell me of prefixes."}],
            max_tokens=48,
            seed=7,
            stream=True,
            stream_options={"include_usage": True},
        ):
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic() - start
                num_chunks += 1
                print(chunk.choices[0].delta.content, end="", flush=True)
            usage = chunk.usage
        print(f"\nfirst text after {first or 0:.3f} s, {num_chunks} chunks, {usage}")
        status, left = cluster.stop()
    print(f"Ctrl-C: exit status {status}, processes left behind: {left or 'none'}")
    good = bool(num_chunks) and status == 0 and not left
    print("PASSED" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
