"""Many clients at once on the Space: `python examples/benchmarks/load.py [--requests 1000] [--clients 50]`.

Starts the app with nano on loopback, sends it a mix of requests to /detect, /localize, /compare, /batch and POST
/detect, and prints how many of each were answered, how long they took, and the server's memory on the way.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "examples" / "pictures").glob("*.jpg"))
MODEL = ["object", "industrial", "nano / industrial"]
MIX = ["detect", "localize", "post", "detect", "compare", "detect", "localize", "post", "detect", "batch"]
"""The kinds of ten requests."""
EVERY = 200
"""Requests between two looks at the memory; the first is what the last is compared with."""


def post(url: str, body: bytes, kind: str) -> object:
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=600) as answer:
        return json.load(answer)


def form(name: str, pictures: Sequence[Path]) -> tuple[bytes, str]:
    """A multipart form, and its content type."""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(
        head + path.read_bytes() + b"\r\n" for path in pictures
    ) + b"--b--\r\n", "multipart/form-data; boundary=b"


def ask(url: str, kind: str, pictures: Sequence[Path]) -> float:
    """Upload, ask, wait for the answer as any HTTP client would; the seconds that it took. Raises RuntimeError if it is
    none."""
    started = time.perf_counter()
    if kind == "post":
        answer = json.dumps(post(f"{url}/detect", *form("picture", pictures[:1])))
    else:
        paths = post(f"{url}/gradio_api/upload", *form("files", pictures))
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        more = {"localize": [0.5], "compare": ["", "", None]}.get(kind, [])
        data = {"data": [files if kind == "batch" else files[0], *MODEL, *more]}
        call = f"{url}/gradio_api/call/{kind}"
        event = post(call, json.dumps(data).encode(), "application/json")["event_id"]
        with urllib.request.urlopen(f"{call}/{event}", timeout=600) as stream:
            answer = stream.read().decode()
        if "event: complete" not in answer:
            raise RuntimeError(answer[:200])
    if f"{len(pictures)} pictures scored" not in answer and '"score"' not in answer:
        raise RuntimeError(answer[:200])
    return time.perf_counter() - started


def megabytes(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def load(url: str, process: int, requests: int, clients: int) -> None:
    """Send the requests, and print what became of them."""
    seconds, lost, memory = {kind: [] for kind in dict.fromkeys(MIX)}, 0, []
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        jobs = {}
        for i in range(requests):
            kind = MIX[i % len(MIX)]
            pictures = [PICTURES[(i // len(MIX) + j) % len(PICTURES)] for j in range(3 if kind == "batch" else 1)]
            jobs[pool.submit(ask, url, kind, pictures)] = kind
        for i, job in enumerate(as_completed(jobs), 1):
            try:
                seconds[jobs[job]].append(job.result())
            except Exception as error:
                lost += 1
                print(f"lost: {jobs[job]}: {error}")
            if i % min(EVERY, requests) == 0:
                memory.append(megabytes(process))
                print(f"{i} requests: {memory[-1]:.0f} MB", flush=True)
    total, answered = time.perf_counter() - started, sum(map(len, seconds.values()))
    print(f"{answered} answered, {lost} lost, {answered / total:.1f} a second; {clients} clients")
    for kind, taken in seconds.items():
        taken.sort()
        late = taken[int(0.95 * (len(taken) - 1))] if taken else float("nan")
        middle = statistics.median(taken) if taken else float("nan")
        print(f"{kind}: {len(taken)}, median {middle:.2f} s, 95th percentile {late:.2f} s")
    print(
        f"memory at the end: {100 * (memory[-1] / memory[0] - 1):+.1f} % of that after {min(EVERY, requests)} requests"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py"), "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        ask(url, "detect", PICTURES[:1])
        print(f"start: {megabytes(server.pid):.0f} MB; {os.cpu_count()} cores", flush=True)
        load(url, server.pid, args.requests, args.clients)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
