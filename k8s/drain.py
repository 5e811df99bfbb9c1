"""preStop hook of worker pods: notify Ray that the node of this pod will be removed, and wait.

    python /app/k8s/drain.py --seconds 30

Training writes a checkpoint at the step after the notice (Ray's `DrainNode`, as for a spot machine). Kubernetes sends
SIGTERM when this ends; terminationGracePeriodSeconds counts from its start. It never fails, since the pod is removed
in any case.
"""

import argparse
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import psutil


def main() -> None:
    """Drain the node with the pod's name, then wait for the rest of the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="time between the notice and the end")
    seconds = parser.parse_args().seconds
    began = time.monotonic()
    for address, node in nodes_of_pod(os.environ.get("POD_NAME", "")):
        command = ["ray", "drain-node", f"--address={address}", f"--node-id={node}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the pod was asked to end"]
        command += [f"--deadline-remaining-seconds={seconds}"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            outcome = "was notified" if done.returncode == 0 else f"was not notified: {done.stderr.strip()}"
            print(f"Ray {outcome} that node {node} will be removed in {seconds} s", flush=True)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))


def nodes_of_pod(name: str) -> Iterator[tuple[str, str]]:
    """Yield GCS address and node id of the Ray node that was started with `--node-name=NAME`.

    They are read from the raylet's command line: a query to Ray would need a driver and too many seconds.
    """
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or []).split()  # part of them is one word, the agent's command
        if process.info["name"] == "raylet" and f"--node-name={name}" in words:
            values = dict(word.removeprefix("--").partition("=")[::2] for word in words)
            yield values["gcs-address"], values["node_id"]


if __name__ == "__main__":
    main()
