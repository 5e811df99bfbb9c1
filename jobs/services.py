"""Local services without a job, until Ctrl-C: to inspect the results of the demo, or to submit jobs manually.

make services
. .state/environment.sh && ray job submit --working-dir . -- python jobs/train.py scenes    # in a second terminal
"""

import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

from brewclip.config import exit_on_user_error, parse_options
from brewclip.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ServicesOptions:
    """Options of the local services."""

    state: Path = CHECKOUT / ".state"
    """Folder for the services' data and logs."""


def main() -> None:
    """Start the services, print their addresses, wait for an interrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with exit_on_user_error():
        options = parse_options(__doc__, ServicesOptions)
        from brewclip.local import LocalServices, StateError
        from brewclip.local.private_files import write_private

        try:
            local = LocalServices(options.state)
        except StateError as error:
            raise UserError(f"--state {error}") from None
    with local as services:
        environment_file = write_private(
            options.state / "environment.sh",
            "".join(f"export {name}={shlex.quote(value)}\n" for name, value in services.environment().items()),
        )
        token_file = write_private(options.state / "ray-token", services.ray.token + "\n")
        login = f"it asks for user {services.mlflow.login.username} and the password in {services.mlflow_password_file}"
        print(f"MLflow:        {services.mlflow.tracking_uri} ({login})")
        print(f"Ray dashboard: {services.ray.dashboard_url} (it asks for the token in {token_file})")
        print(f"S3 server:     {services.s3.endpoint_url}, bucket {services.bucket_url}")
        print(f"in a second terminal: . {environment_file}")
        print("Ctrl-C stops them.", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping the services", flush=True)
        finally:
            environment_file.unlink()
            token_file.unlink()


if __name__ == "__main__":
    main()
