"""Credentials never reach stderr: neither in a line for the user nor in a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from brewclip.config.masking import without_secrets

CHECKOUT = Path(__file__).parents[1]
SECRET = "Xq7-only-for-this-test"


@pytest.mark.parametrize("error", ["UserError", "RuntimeError"])
def test_an_error_that_names_a_url_with_a_password_is_printed_without_it(error):
    code = f"""
from brewclip.config import exit_on_user_error
from brewclip.errors import UserError
with exit_on_user_error():
    raise {error}("http://me:{SECRET}@127.0.0.1:1/ cannot be reached")
"""
    script = "import os; exec(os.environ['CODE'])"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"CODE": code, "PATH": "", "PYTHONPATH": str(CHECKOUT)}, cwd=CHECKOUT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (2 if error == "UserError" else 1)
    assert "http://127.0.0.1:1/ cannot be reached" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_keys_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert without_secrets(f"the key {SECRET} is refused") == "the key *** is refused"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    assert without_secrets("the key is refused") == "the key is refused"
