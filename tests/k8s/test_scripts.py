"""The small programs of k8s/: waiting for a job, the table of costs, the list of packages, the policy of the bucket."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.k8s.overlays import CHECKOUT

OPERATIONS = CHECKOUT / "docs" / "kubernetes-operations.md"


@pytest.mark.slow
def test_the_costs_are_those_of_the_arithmetic():
    command = [sys.executable, "k8s/costs.py"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    table = OPERATIONS.read_text().partition("<!-- costs -->\n")[2].partition("<!-- /costs -->")[0]
    assert table == done.stdout


@pytest.mark.parametrize(
    ("answers", "code", "text"),
    [
        (("Running", "Complete", "SUCCEEDED"), 0, "train: SUCCEEDED"),
        (("Complete", "STOPPED"), 1, "train: STOPPED"),
        (("Retrying", "Failed", "AppFailed: it failed"), 1, "AppFailed: it failed"),
    ],
)
def test_waiting_ends_with_the_job(tmp_path, answers, code, text):
    """The script with a `kubectl` that gives one answer after the other."""
    (tmp_path / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\nhead -n 1 {tmp_path}/answers\nsed -i 1d {tmp_path}/answers\n")
    kubectl.chmod(0o700)
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    (tmp_path / "sleep").chmod(0o700)
    command = [str(CHECKOUT / "k8s" / "wait_for_job.sh"), "train", "60"]
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.defpath}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, text in done.stdout + done.stderr) == (code, True), done


def test_the_policy_of_the_bucket_is_that_of_minio():
    """One bucket and its objects, with the same actions as the user that MinIO's hook makes."""
    policy = json.loads((CHECKOUT / "k8s" / "iam-policy.json").read_text())
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    hook = (CHECKOUT / "k8s" / "components" / "minio" / "minio.yaml").read_text()
    assert actions == set(re.findall(r"s3:\w+", hook))


def test_the_list_of_packages_is_what_scanners_read(tmp_path):
    command = [sys.executable, "k8s/write_sbom.py", "--file", str(tmp_path / "sbom.json")]
    subprocess.run(command, cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, check=True)
    document = json.loads((tmp_path / "sbom.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    (ray,) = (one for one in document["components"] if one["name"] == "ray")
    assert ray["purl"] == f"pkg:pypi/ray@{ray['version']}"
    assert f"ray=={ray['version']}" in (CHECKOUT / "constraints.txt").read_text()
