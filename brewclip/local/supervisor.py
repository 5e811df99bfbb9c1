"""Process supervisor: run one command and end it, with all its descendants, when the parent process is gone.

Started by file path as a separate process (`python -I -S supervisor.py ...`), so it imports the standard library only.
The parent holds the write end of a pipe that is this process's standard input: when the parent ends in any way
(SIGKILL included), the kernel closes the pipe and this process cleans up. The parent needs no signal handler, and no
thread that has to stay alive, as PR_SET_PDEATHSIG would require.

On Linux this process is a "child subreaper": a descendant that leaves its process group or loses its parent, as
daemons do, becomes a child of this process, so none can escape. Elsewhere only the command's process group is ended.
"""

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.1
ON_LINUX = sys.platform == "linux"


def set_process_option(option: int, value: int) -> None:
    """Set an option of the calling process by prctl(2); do nothing where that does not exist."""
    if ON_LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def parent_ids() -> dict[int, int]:
    """Return the parent id of every process on this machine, from /proc."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we were reading
                stat = Path(entry.path, "stat").read_text(errors="replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])  # the name may hold blanks
    return parents


def descendants(ancestor: int) -> list[int]:
    """Return the ids of all living processes below `ancestor`, nearest first."""
    parents = parent_ids()
    found = [ancestor]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def send(signal_number: int, pids: list[int]) -> None:
    """Signal each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)


class Command:
    """The supervised command: started on construction; `exit_code` is None while it runs."""

    def __init__(self, arguments: list[str]) -> None:
        self.exit_code: int | None = None
        # The command gets SIGTERM even if we are SIGKILLed. preexec_fn is safe: this process has one thread.
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: set_process_option(PR_SET_PDEATHSIG, signal.SIGTERM),
        )

    def reap(self) -> None:
        """Collect ended processes: the command itself and descendants that were reparented to this process."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.process.pid:
                self.exit_code = self.process.returncode = os.waitstatus_to_exitcode(status)

    def end(self, grace_seconds: float) -> None:
        """Ask the command to end, wait for it, then kill everything that is left below this process."""
        deadline = time.monotonic() + grace_seconds
        if self.exit_code is None:
            send(signal.SIGTERM, [self.process.pid])
        while self.exit_code is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            self.reap()
        if not ON_LINUX:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            return
        while left := descendants(os.getpid()):  # more than once: one may have started another meanwhile
            send(signal.SIGKILL, left)
            time.sleep(POLL_SECONDS / 4)
            self.reap()


def asked_to_end(pipe: int, timeout_seconds: float) -> bool:
    """Wait for the parent to close the pipe, at most `timeout_seconds`; return whether it did."""
    readable, _, _ = select.select([pipe], [], [], timeout_seconds)
    return bool(readable) and os.read(pipe, 1) == b""


def main() -> int:
    """Supervise until the command ends, the pipe closes, the parent is gone or SIGTERM arrives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=int, required=True, help="id of the parent process")
    parser.add_argument("--grace-seconds", type=float, default=10.0, help="from SIGTERM to SIGKILL")
    parser.add_argument("--rescue", nargs=2, metavar=("FROM", "TO"), help="directory to copy at the end")
    parser.add_argument("--remove", action="append", default=[], help="directory to delete at the end")
    parser.add_argument("arguments", nargs="+", help="the command")
    flags = parser.parse_args()

    terminated: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: terminated.append(number))
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
    command = Command(flags.arguments)
    try:
        while command.exit_code is None and not terminated and os.getppid() == flags.parent:
            if asked_to_end(sys.stdin.fileno(), POLL_SECONDS):
                break
            command.reap()
    finally:
        command.end(flags.grace_seconds)
        if flags.rescue:
            # Copy what exists: a server that failed early has written few logs.
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(flags.rescue[0], flags.rescue[1], dirs_exist_ok=True)
        for directory in flags.remove:
            shutil.rmtree(directory, ignore_errors=True)
    code = command.exit_code or 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
