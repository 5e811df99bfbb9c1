"""Job submission to a local Ray head, as a user would do it: by the `ray job submit` command."""

import json
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from brewclip.local.processes import SupervisedProcess, program_path, server_environment
from brewclip.local.ray_head import RayHead

# The command's own messages, about 15 lines per job: uploading, how to stop it, that it has ended.
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
    """Run `ray job submit`, forward the job's output and return the exit code of the job's command.

    Files in .gitignore are not uploaded, nor are .git and .venv (Ray's own rule). The dashboard shows `environment`
    to everyone who opens it: secrets belong in RayHead's. If this is interrupted, the job is stopped.

    Args:
        head: a running head.
        command: what to run there, in `working_directory`.
        working_directory: packed, uploaded and unpacked for the job.
        environment: variables for the job and its workers, in addition to those that the head was started with.
        say: called with each line of the job's output; with those of `ray job submit` itself only if it fails.
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
    """Yield a job's own lines from the output of `ray job submit`.

    The command's own messages are held back, and dropped once the job is submitted. After a failed job it repeats the
    job's last lines: nothing more is yielded then.
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
    """Ask Ray to stop a job; a head that does not answer is ignored (the job ends with it)."""
    head.request(f"/api/jobs/{submission_id}/stop", method="POST")


def driver_exit_code(head: RayHead, submission_id: str, default: int) -> int:
    """Return the exit code of the job's own command: `ray job submit` turns every failure into 1."""
    code = head.request(f"/api/jobs/{submission_id}").get("driver_exit_code")
    return default if code is None else int(code)
