"""Many clients at once on the Space: `python examples/benchmarks/load.py [--requests 200] [--clients 50]`.

Starts the app with nano on loopback, sends the same number of uploads to /detect, and prints how many were answered,
how long they took, and the server's memory after each quarter.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "examples" / "pictures").glob("*.jpg"))


def post(url: str, body: bytes, kind: str) -> object:
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=300) as answer:
        return json.load(answer)


def detect(url: str, picture: Path) -> float:
    """Upload, ask, wait for the score as any HTTP client would; the seconds that it took."""
    started = time.perf_counter()
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    body += picture.read_bytes() + b"\r\n--b--\r\n"
    (path,) = post(f"{url}/gradio_api/upload", body, "multipart/form-data; boundary=b")
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = {"data": [image, "object", "industrial", "nano / industrial"]}
    event = post(f"{url}/gradio_api/call/detect", json.dumps(data).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/detect/{event}", timeout=300) as stream:
        answer = stream.read().decode()
    if "event: complete" not in answer or '"score"' not in answer:
        raise RuntimeError(answer[:200])
    return time.perf_counter() - started


def megabytes(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py"), "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        detect(url, PICTURES[0])
        print(f"start: {megabytes(server.pid):.0f} MB; {os.cpu_count()} cores")
        seconds, lost = [], 0
        started = time.perf_counter()
        with ThreadPoolExecutor(args.clients) as clients:
            jobs = [clients.submit(detect, url, PICTURES[i % len(PICTURES)]) for i in range(args.requests)]
            for i, job in enumerate(jobs, 1):
                try:
                    seconds.append(job.result())
                except Exception as error:
                    lost += 1
                    print(f"lost: {error}")
                if i % max(1, args.requests // 4) == 0:
                    print(f"{i} requests: {megabytes(server.pid):.0f} MB")
        total = time.perf_counter() - started
        seconds.sort()
        late = seconds[int(0.95 * (len(seconds) - 1))]
        print(f"{len(seconds)} answered, {lost} lost, {len(seconds) / total:.1f} a second; {args.clients} clients")
        print(f"median {statistics.median(seconds):.2f} s, 95th percentile {late:.2f} s, longest {seconds[-1]:.2f} s")
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
