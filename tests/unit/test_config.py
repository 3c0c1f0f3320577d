"""Settings: where they come from, which wins, and what a wrong one says."""

from __future__ import annotations

import json
import stat

import pytest

from featurestore.config import Settings, hide_url
from featurestore.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text):
    path = folder / "featurestore.toml"
    path.write_text(text)
    return path


def test_without_file_and_variables_the_defaults_hold(folder):
    settings = Settings.load()
    assert settings.project == "default"
    assert settings.home == folder / ".featurestore"
    assert settings.offline == str(folder / ".featurestore/offline")
    assert settings.models == folder / ".featurestore/models"
    assert settings.online.timeout == "50ms"
    assert settings.spark.master == "local[4]"


def test_the_file_is_found_in_the_working_directory_named_by_variable_or_given(folder, monkeypatch, tmp_path_factory):
    write(folder, 'project = "here"')
    assert Settings.load().project == "here"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("FEATURESTORE_CONFIG", str(write(elsewhere, 'project = "named"')))
    assert Settings.load().project == "named"
    third = tmp_path_factory.mktemp("third")
    write(third, 'project = "given"')
    assert Settings.load(third).project == "given"


def test_the_caller_wins_over_variables_and_variables_over_the_file(folder, monkeypatch):
    write(folder, 'project = "file"\n[online]\nurl = "redis://file"\ntimeout = "1ms"\n[spark]\nmaster = "local[9]"')
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://variable")
    monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT", "2ms")
    settings = Settings.load(online={"timeout": "3ms"})
    assert (settings.project, settings.online.url, settings.online.timeout) == ("file", "redis://variable", "3ms")
    assert settings.spark.master == "local[9]"


def test_relative_paths_are_relative_to_the_folder_of_the_file_and_uris_stay(folder, tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    settings = Settings.load(write(there, 'home = "h"\noffline = "tables"\nmodels = "m"'))
    assert (settings.home, settings.offline, settings.models) == (there / "h", str(there / "tables"), there / "m")
    assert Settings.load(write(there, 'offline = "s3a://bucket/x"')).offline == "s3a://bucket/x"


def test_kafka_and_spark_settings_pass_verbatim_however_toml_spells_dots(folder):
    write(
        folder,
        '[kafka]\n"bootstrap.servers" = "a:1"\nsecurity.protocol = "SASL_SSL"\nretries = 3\n"enable.idempotence" = true\n'
        '[spark.conf]\nspark.executor.memory = "4g"\n',
    )
    settings = Settings.load()
    assert settings.kafka == {
        "bootstrap.servers": "a:1",
        "security.protocol": "SASL_SSL",
        "retries": "3",
        "enable.idempotence": "true",
    }
    assert settings.spark.conf == {"spark.executor.memory": "4g"}


def test_a_variable_reaches_one_kafka_setting_and_keeps_the_others(folder, monkeypatch):
    write(folder, '[kafka]\nbootstrap.servers = "a:1"\n"client.id" = "x"')
    monkeypatch.setenv("FEATURESTORE_KAFKA__BOOTSTRAP_SERVERS", "b:2")
    assert Settings.load().kafka == {"bootstrap.servers": "b:2", "client.id": "x"}
    monkeypatch.setenv("FEATURESTORE_KAFKA", '{"bootstrap.servers": "c:3"}')
    monkeypatch.delenv("FEATURESTORE_KAFKA__BOOTSTRAP_SERVERS")
    assert Settings.load().kafka["bootstrap.servers"] == "c:3"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('projet = "x"', ["line 1", "unknown key 'projet'", "did you mean 'project'?"]),
        ('\n[online]\nurll = "x"', ["line 3", "unknown key 'online.urll'", "did you mean 'url'?"]),
        ("[onlin]\nurl = 'x'", ["line 1", "unknown key 'onlin'", "did you mean 'online'?"]),
        ('project = "x"\nhome = oops', ["line 2", "not TOML"]),
        ("project = ", ["line 1", "not TOML"]),
        ('project = "No Good"', ["line 1", "'No Good'", "lower-case"]),
        ('[online]\ntimeout = "soon"', ["line 2", "'soon'", "5m"]),
        ("[serve]\nport = 99999", ["line 2", "serve.port", "99999", "65535"]),
        ("[kafka]\nbootstrap.servers = ['a']", ["kafka", "not usable"]),
        ("online = 3", ["online", "3"]),
    ],
)
def test_a_wrong_file_is_one_line_with_file_line_key_and_hint(folder, text, parts):
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for part in parts:
        assert part in message


def test_a_file_that_cannot_be_read_is_named(folder):
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        Settings.load(folder / "nowhere.toml")
    (folder / "binary.toml").write_bytes(b'project = "\xff"')
    with pytest.raises(ConfigError, match=r"binary\.toml: byte 11 is not UTF-8"):
        Settings.load(folder / "binary.toml")


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        (
            "FEATURESTORE_ONLINE_URL",
            "redis://x",
            ["FEATURESTORE_ONLINE_URL", "did you mean 'FEATURESTORE_ONLINE__URL'?"],
        ),
        ("FEATURESTORE_PROJET", "x", ["FEATURESTORE_PROJET", "did you mean 'FEATURESTORE_PROJECT'?"]),
        ("FEATURESTORE_ONLINE__URLL", "x", ["the environment", "online.urll", "did you mean 'url'?"]),
        ("FEATURESTORE_KAFKA", "{oops", ["FEATURESTORE_KAFKA", "not JSON"]),
        ("FEATURESTORE_SERVE__PORT", "x", ["the environment", "serve.port"]),
    ],
)
def test_a_wrong_variable_is_named(folder, monkeypatch, name, value, parts):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "FEATURESTORE_SERVICE_HOST",
        "FEATURESTORE_PORT",
        "FEATURESTORE_PORT_8080_TCP_ADDR",
        "FEATURESTORE_CACHE",
        "FEATURESTORE_CLASS_ARCHIVE",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_this_name_does_no_harm(folder, monkeypatch, name):
    monkeypatch.setenv(name, "tcp://10.0.0.1:8080")
    assert Settings.load().project == "default"


def test_no_secret_is_in_the_repr(folder):
    settings = Settings.load(
        online={"url": "rediss://me:pa55@host:6379/0?password=pa55"},
        kafka={"sasl.jaas.config": "pa55", "ssl.key.password": "pa55", "sasl.mechanism": "PLAIN"},
        spark={"conf": {"spark.hadoop.fs.s3a.secret.key": "pa55", "spark.hadoop.fs.s3a.access.key": "pa55"}},
    )
    assert "pa55" not in repr(settings) + str(settings) + repr(settings.online) + repr(settings.spark)
    assert "PLAIN" in repr(settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:pa55@host", "redis://:***@host"),
        ("redis://me:p@55@host", "redis://me:***@host"),
        ("unix:///run/x.sock?password=pa55", "unix:///run/x.sock"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert hide_url(url) == shown


def test_resolved_settings_survive_a_file_and_ignore_the_environment_of_the_reader(folder, monkeypatch):
    settings = Settings.load(project="p", kafka={"bootstrap.servers": "a:1"}, online={"url": "redis://:pa55@h"})
    path = folder / "config.json"
    path.write_text("x" * 9999)
    settings.to_json(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("FEATURESTORE_PROJECT", "other")
    monkeypatch.chdir("/")
    assert Settings.from_json(path) == settings
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Settings.from_json(path)


def test_a_running_stack_fills_in_what_is_not_configured(folder):
    stack = folder / ".featurestore/stack/stack.json"
    stack.parent.mkdir(parents=True)
    stack.write_text(json.dumps({"kafka": "127.0.0.1:1", "online": "redis://127.0.0.1:2/0", "pids": {}, "born": {}}))
    settings = Settings.load()
    assert (settings.online.url, settings.kafka["bootstrap.servers"]) == ("redis://127.0.0.1:2/0", "127.0.0.1:1")
    settings = Settings.load(online={"url": "redis://mine"}, kafka={"bootstrap.servers": "b:3"})
    assert (settings.online.url, settings.kafka["bootstrap.servers"]) == ("redis://mine", "b:3")
    stack.write_text("{")
    assert Settings.load().online.url == "redis://127.0.0.1:6379/0"


def test_settings_do_not_change(folder):
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().project = "x"
