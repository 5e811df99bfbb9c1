"""Settings of the service: where it may listen, tokens, and what a Serve config may say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brewclip.errors import UserError
from brewclip.service.command import serve
from brewclip.service.settings import ServiceSettings, read_token, settings_from

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BREWCLIP_SERVICE_TOKEN", raising=False)


def test_an_address_that_others_reach_needs_a_token(monkeypatch, tmp_path):
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert read_token(ServiceSettings("i", host=host)) == ""
    for host in ("0.0.0.0", "::", "10.0.0.7", "localhost.example"):
        with pytest.raises(UserError, match=f"--host {host} can be reached by others: set BREWCLIP_SERVICE_TOKEN"):
            read_token(ServiceSettings("i", host=host))
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert read_token(ServiceSettings("i", host="0.0.0.0", token_file=str(tmp_path / "token"))) == TOKEN
    monkeypatch.setenv("BREWCLIP_SERVICE_TOKEN", "short")
    with pytest.raises(UserError, match="must be 16 ASCII letters or more"):
        read_token(ServiceSettings("i"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "index is missing"),
        ({"index": "i", "indx": 1}, "indx is no setting of the service"),
        ({"index": "i", "embedder": {"batch": 1}}, r"embedder\.batch is no setting"),
        ({"index": "i", "embedder": 3}, "embedder is 3; it must hold settings"),
        ({"index": "i", "embedder": {"batch_size": 0}}, "--embedder.batch-size 0 must be 1..1024"),
        ({"index": "i", "embedder": {"min_replicas": 3}}, "--embedder.max-replicas 1 must be 3 or more"),
        ({"index": "i", "limits": {"in_flight": 2}}, "--limits.in-flight 2 must be 16 or more"),
        ({"index": "i", "port": "8000"}, "--port '8000'"),
    ],
)
def test_a_wrong_serve_config_is_one_line(values, message):
    with pytest.raises(UserError, match=message):
        settings_from(values)


def test_the_printed_configuration_has_what_was_set_and_no_token(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BREWCLIP_SERVICE_TOKEN", TOKEN)
    words = ["--index", str(tmp_path), "--host", "0.0.0.0", "--embedder.max-replicas", "8", "--print-config"]
    assert serve(words) == 0
    text = capsys.readouterr().out
    config = json.loads(text)
    (application,) = config["applications"]
    assert settings_from(application["args"]).embedder.max_replicas == 8
    assert application["args"] == {"index": str(tmp_path), "host": "0.0.0.0", "embedder": {"max_replicas": 8}}
    assert config["http_options"]["host"] == "0.0.0.0" and TOKEN not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--index", "/nowhere"], "index /nowhere does not exist"),
        (["--index", "/nowhere", "--no-ray"], "index /nowhere does not exist"),
        (["--index", "i", "--host", "0.0.0.0"], "can be reached by others"),
        (["--index", "i", "--port", "70000"], "--port 70000 must be 0..65535"),
        (["--index", "i", "--host", "192.0.2.1", "--token-file", "TOKEN"], "cannot listen on --host 192.0.2.1"),
    ],
)
def test_mistakes_of_the_command_line(words, message, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        serve([str(tmp_path / "token") if word == "TOKEN" else word for word in words])


def test_the_app_needs_no_ray():
    code = "import sys, brewclip.service.app, brewclip.service.searcher; print('ray' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
