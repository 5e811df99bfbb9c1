"""The commands that the documentation shows, typed as they stand: against the services, and against another Ray head.

Each must be a command line that its script takes. README's with `ray job submit` are submitted, and those of jobs that
README does not submit: what needs a GPU or a run that is not here must say so in one line; the training of the scenes
world trains, and is stopped as README says.
"""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import psutil
import pytest

from brewclip.config import parse_options
from brewclip.errors import UserError
from brewclip.local import RayHead
from tests.jobs.documented import docstring_commands, page_commands, readme_commands
from tests.k8s.manifests.agreement import _load, parse_entrypoint
from tests.local.test_local import still_there
from tests.training.features import write_features

CHECKOUT = Path(__file__).parents[2]
COMMANDS = sorted({*readme_commands(), *page_commands(), *docstring_commands()})
SUBMITTED = [command for command in COMMANDS if "ray job submit" in command]
OF_README = [command for command in SUBMITTED if command in readme_commands() and "--runtime-env" not in command]
OF_DOCSTRINGS = [command for command in SUBMITTED if command in docstring_commands() and ". .state" not in command]
# Jobs that README does not submit; the others' docstrings show README's commands with `--storage s3://bucket`.
ELSEWHERE = [one for one in OF_DOCSTRINGS if not any(shlex.split(one)[7] in shown for shown in OF_README)]
(PASSING,) = [command for command in SUBMITTED if "--runtime-env-json" in command]
(TRAINING,) = [command for command in SUBMITTED if ". .state" in command]
NO_GPU = (
    r"error: (extraction|training|a trial) asks for \d workers? of 4 CPUs and 1 GPU; the cluster has .*: set --clus.*"
)
NO_RUN = r"error: .*no checkpoint at s3://(bucket|brewclip)/runs/.*"
NO_IMAGES = r"error: s3://bucket/images holds no image \(.*\)"
NO_ROOM = r"error: the network test asks for 16 workers .*: set --num-workers 2"
EXPECTED = {
    **dict.fromkeys(("extract", "train", "sweep"), NO_GPU),
    **dict.fromkeys(("evaluate", "word_errors"), NO_RUN),
    "index": NO_IMAGES,
    "network": NO_ROOM,
}


def script_of(command: str) -> tuple[str, list[str]]:
    """Return the script of a command, and the words behind it."""
    words = shlex.split(command.rpartition(" && ")[2])
    if words[0] == "ray":
        words = words[words.index("--") + 1 :]
    return words[1], [word.replace("URL", "s3://bucket") for word in words[2:]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shown_command_is_one_that_its_script_takes(command, monkeypatch, tmp_path):
    script, words = script_of(command)
    module = _load(CHECKOUT / script)
    forms = [one for one in vars(module).values() if dataclasses.is_dataclass(one) and isinstance(one, type)]
    if "my_space.py" in words:
        (tmp_path / "my_space.py").write_text((CHECKOUT / "tune" / "spaces.py").read_text())
        words = [str(tmp_path / word) if word == "my_space.py" else word for word in words]
        with pytest.raises(UserError, match=r"my_space\.py"):  # what a space must hold, tests/tune knows
            parse_entrypoint(shlex.join(["python", script, *words]))
    elif hasattr(module, "BENCHMARKS"):
        assert words[0] in module.BENCHMARKS
    elif script == "jobs/reproduce.py":
        module.parse(words)
    elif hasattr(module, "parse_command_line") or script.startswith("datasets/"):
        parse_entrypoint(shlex.join(["python", script, *words]))
    else:
        own = [form for form in forms if form.__module__ == module.__name__ or form.__name__ == "TrainScenesClip"]
        parse_options(module.__doc__, own[0], words)


def test_nothing_is_written_into_the_checkout():
    """A corpus in the checkout would be uploaded with each job, were it not for .rayignore."""
    for command in COMMANDS:
        for flag in ("--source", "--dest"):
            for where in re.findall(rf"{flag} ((?:(?!--)\S+ ?)+)", command):
                outside = r"(\w+=)?'?(s3://|file:///|/|DIR$|URL|\$BREWCLIP_STORAGE/)"
                assert all(re.match(outside, word) for word in where.split()), command


@dataclass(frozen=True)
class Shell:
    """A user's shell: nothing of ours in its environment but what `make services` says to load."""

    environment: dict[str, str]

    def run(self, command: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Type a command in the checkout and wait for its end; stdout and stderr together."""
        return subprocess.run(
            ["bash", "-c", command], cwd=CHECKOUT, env=self.environment, timeout=seconds, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def plain_environment() -> dict[str, str]:
    """Return an environment without our services' variables, and with the checkout's Python first on PATH."""
    ours = ("AWS_", "MLFLOW_", "RAY_", "BREWCLIP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The state directory of `make services`, whose buckets hold small extracted corpora while it runs.

    Nothing of the services is left after Ctrl-C.
    """
    folder, temporary = tmp_path_factory.mktemp("services"), tmp_path_factory.mktemp("tmp")
    command = [sys.executable, "jobs/services.py", "--state", str(folder)]
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=plain_environment() | {"TMPDIR": str(temporary)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as services:  # fmt: skip
        assert services.stdout is not None
        said = []
        for line in services.stdout:
            said.append(line)
            if line.startswith("Ctrl-C stops"):
                break
        assert (folder / "environment.sh").is_file(), "".join(said)
        check_secrets(folder, "".join(said))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in services_environment(folder).items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="bucket")
            for place in ("s3://bucket/flickr8k", "s3://bucket/flickr8k/whisper-base"):
                for split, count in (("train", 40), ("dev", 8), ("test", 8)):
                    write_features(place, split, count, rounds=1)
            shutil.copytree(folder / "s3" / "bucket" / "flickr8k", folder / "s3" / "brewclip" / "flickr8k")
            for split, count in (("train", 64), ("dev", 8)):
                write_features("s3://brewclip/scenes/whisper-base", split, count, rounds=1)
        yield folder
        started = psutil.Process(services.pid).children(recursive=True)
        assert len(started) >= 15
        services.send_signal(signal.SIGINT)
        assert services.wait(60) == 0
    assert still_there(started) == []
    assert list(temporary.glob("brewclip-*")) == []
    assert not (folder / "environment.sh").exists()


def check_secrets(folder: Path, said: str) -> None:
    """Files with secrets are named to the user and private; the secrets themselves are not printed."""
    for name in ("environment.sh", "ray-token", "mlflow-password"):
        assert str(folder / name) in said
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    variables = services_environment(folder)
    assert variables["MLFLOW_TRACKING_PASSWORD"] == (folder / "mlflow-password").read_text().strip()
    for name in ("MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        assert variables[name] not in said


def services_environment(folder: Path) -> dict[str, str]:
    """Return the variables that the services say to load."""
    text = (folder / "environment.sh").read_text()
    return {name: shlex.split(value)[0] for name, value in re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE)}


def answers(shell: Shell, commands: list[str]) -> None:
    """Type commands, two at a time, and find for each the one line that says what is not here."""
    with ThreadPoolExecutor(2) as side_by_side:
        for command, done in zip(commands, side_by_side.map(shell.run, commands), strict=True):
            check_answer(command, done)


def check_answer(command: str, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, f"{command}\n{done.stdout}"
    assert "Traceback" not in done.stdout, f"{command}\n{done.stdout}"
    own = {line for line in done.stdout.splitlines() if line.startswith("error: ")}
    (line,) = own
    expected = EXPECTED[Path(script_of(command)[0]).stem]
    assert re.fullmatch(expected, line), f"{command}\n{line}"


@pytest.mark.services
@pytest.mark.timeout(600)
def test_readme_against_the_services(state):
    """README's commands as they stand, in a shell that has loaded what the services say."""
    answers(Shell(plain_environment() | services_environment(state)), OF_README)


@pytest.mark.services
@pytest.mark.timeout(600)
def test_training_by_the_services_and_its_stop(state):
    """The nodes know storage and tracking; README's words on stopping hold."""
    shell = Shell(plain_environment())
    command = TRAINING.replace(".state", str(state))
    load = f". {state}/environment.sh"
    with subprocess.Popen(
        ["bash", "-c", command], cwd=CHECKOUT, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        said = []
        for line in client.stdout:
            said.append(line)
            if "step 10/300, loss" in line:
                break
        text = "".join(said)
        assert "loss of chance 8.318" in text, text
        assert "PreemptionWatcher" not in text
        assert "nothing is recorded" not in text
        job = re.search(r"raysubmit_\w+", text)[0]
        stopped = shell.run(f"{load} && ray job stop {job}")
        assert client.wait(60) == 0, "README says 0"
    assert stopped.returncode == 0
    assert "was stopped" in shell.run(f"{load} && ray job status {job}").stdout
    checkpoint = state / "s3" / "brewclip" / "runs" / "scenes-brewclip-0" / "checkpoints" / "latest"
    assert checkpoint.read_text() >= "step-00000010"


@pytest.mark.services
@pytest.mark.timeout(600)
def test_docstrings_and_readme_against_a_head_that_shares_only_s3(state, tmp_path):
    own = services_environment(state)
    aws = {name: value for name, value in own.items() if name.startswith("AWS_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BREWCLIP_STORAGE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        with RayHead(tmp_path, num_cpus=2, environment=aws) as head:
            shell = Shell(plain_environment() | head.environment())
            lacking = next(command for command in OF_README if "jobs/train.py" in command)
            done = shell.run(lacking)
            assert "error: this submitted job has no storage" in done.stdout
            assert "set BREWCLIP_STORAGE on the cluster's nodes" in done.stdout
            answers(shell, [PASSING, *ELSEWHERE])
