"""Submitting a job to an embedded Ray head, as a user would: by the `ray job submit` command."""

import json
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from brewclip.local.processes import SupervisedProcess, program_path, server_environment
from brewclip.local.ray_head import RayHead

# What the command says itself, about 15 lines a job: uploading, how to stop it, that it is over.
CHATTER = re.compile(
    r"\d{4}-\d\d-\d\d \S+\s+[A-Z]+ (cli|sdk|dashboard_sdk|packaging|working_dir|job_manager)\.py:\d+ -- "
)


def submit_job(
    head: RayHead,
    command: str,
    working_directory: Path,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Runs `ray job submit`, passes the job's output on and returns the exit code of the job's command.

    What .gitignore names is not uploaded, nor are .git and .venv (Ray's own rule). The dashboard shows
    `environment` to whoever opens it: secrets belong in RayHead's. When this is interrupted, the job is
    stopped.

    Args:
        head: a running head.
        command: what to run there, in `working_directory`.
        working_directory: is packed, uploaded and unpacked for the job.
        environment: variables for the job and its workers, beside those that the head was started with.
        say: gets each line of the job's output; those of `ray job submit` itself only if it fails.
    """
    submission_id = f"brewclip-{secrets.token_hex(6)}"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # mode 0600; JSON is YAML, which Ray reads
        json.dump({"env_vars": dict(environment or {})}, file)
        file.flush()
        arguments = [program_path("ray"), "job", "submit", f"--address={head.dashboard_url}"]
        arguments += [f"--submission-id={submission_id}", f"--working-dir={working_directory}"]
        arguments += [f"--runtime-env={file.name}", "--log-style=record", "--log-color=false"]
        arguments += ["--", *shlex.split(command)]
        client = SupervisedProcess(
            arguments, environment=server_environment(head.environment()), log_path=None, grace_seconds=1.0
        )
        try:
            for line in without_chatter(client.lines()):
                say(line)
        except BaseException:
            stop_job(head, submission_id)
            raise
        finally:
            exit_code = client.stop()
    return driver_exit_code(head, submission_id, default=exit_code)


def without_chatter(lines: Iterable[str]) -> Iterator[str]:
    """Yields a job's own lines out of those of `ray job submit`.

    What the command says itself is held back, and dropped once the job was submitted. After a failed job it
    repeats the job's last lines: nothing more is yielded then.
    """
    held_back: list[str] = []
    submitted = False
    for line in lines:
        if not CHATTER.match(line):
            yield line
            continue
        submitted = submitted or line.endswith("submitted successfully")
        if submitted and re.search(r"\sERR cli\.py:\d+ -- Job '.*' failed$", line):
            break
        held_back.append(line)
    if not submitted:
        yield from held_back
    for _ in lines:  # read to the end, or the command blocks
        pass


def stop_job(head: RayHead, submission_id: str) -> None:
    """Asks Ray to end a job; a head that does not answer is left alone (the job ends with it)."""
    head.request(f"/api/jobs/{submission_id}/stop", method="POST")


def driver_exit_code(head: RayHead, submission_id: str, default: int) -> int:
    """Returns the exit code of the job's own command: `ray job submit` turns every failure into 1."""
    code = head.request(f"/api/jobs/{submission_id}").get("driver_exit_code")
    return default if code is None else int(code)
