"""Fetching jars with the real Ivy, from a registry of the test's own on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from featurestore.errors import StackError
from featurestore.stack import jars
from featurestore.stack.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.jvm


class Registry(ThreadingHTTPServer):
    """Serves a Maven repository and counts what it is asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(root)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def add(self, artifact: str, version: str, needs: str = "") -> None:
        folder = self.root / "org" / "example" / artifact / version
        folder.mkdir(parents=True)
        (folder / f"{artifact}-{version}.jar").write_bytes(artifact.encode() * 1000)
        (folder / f"{artifact}-{version}.pom").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>org.example</groupId>"
            f"<artifactId>{artifact}</artifactId><version>{version}</version><dependencies>{needs}</dependencies></project>"
        )


class _Files(SimpleHTTPRequestHandler):
    server: Registry

    def log_message(self, *_: Any) -> None:
        self.server.asked.append(self.path)


def needs(artifact: str, version: str) -> str:
    return (
        f"<dependency><groupId>org.example</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version></dependency>"
    )


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "maven").mkdir()
    with Registry(tmp_path / "maven") as server:
        server.add("wanted", "1.0", needs("helper", "2.0") + needs("carried", "3.0"))
        server.add("helper", "2.0")
        server.add("carried", "3.0")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def use(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Ivy ask this registry and no other."""
    settings = tmp_path / "ivysettings.xml"
    settings.write_text(
        '<ivysettings><settings defaultResolver="own"/><resolvers>'
        f'<ibiblio name="own" m2compatible="true" root="{url}"/></resolvers></ivysettings>'
    )
    monkeypatch.setenv("FEATURESTORE_IVY_SETTINGS", str(settings))


def fetch(tmp_path: Path, coordinate: str = "org.example:wanted:1.0") -> Path:
    return jars.ensure("set", (coordinate,), label="jars", without={"carried"}, cache=tmp_path / "cache")


def test_what_is_wanted_and_what_it_needs_is_fetched_less_what_is_there(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use(registry.url, tmp_path, monkeypatch)
    directory = fetch(tmp_path)
    assert sorted(jar.name for jar in directory.glob("*.jar")) == ["helper-2.0.jar", "wanted-1.0.jar"]
    assert capfd.readouterr().err.startswith("fetching jars ...\nfetching jars: 2 jars, 0 MB in ")
    asked = len(registry.asked)
    assert fetch(tmp_path) == directory
    assert len(registry.asked) == asked
    (directory / "helper-2.0.jar").unlink()
    assert (fetch(tmp_path) / "helper-2.0.jar").is_file()
    assert not [path for path in (tmp_path / "cache" / "jars").iterdir() if path.name.endswith(".partial")]


def test_two_processes_fetch_once(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(registry.url, tmp_path, monkeypatch)
    code = (
        "import sys; from pathlib import Path; from featurestore.stack import jars\n"
        "jars.ensure('set', ('org.example:wanted:1.0',), label='jars', cache=Path(sys.argv[1]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cache")]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert sum(path.endswith("wanted-1.0.jar") for path in registry.asked) <= 2  # one HEAD, one GET


def test_a_registry_that_is_away_is_said_to_be_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(f"http://127.0.0.1:{free_ports(1)[0]}/", tmp_path, monkeypatch)
    with pytest.raises(StackError, match=r"the registry of .*ivysettings\.xml cannot be reached") as error:
        fetch(tmp_path)
    assert "names a mirror" in (error.value.hint or "")


def test_an_artifact_that_does_not_exist_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(registry.url, tmp_path, monkeypatch)
    with pytest.raises(StackError, match=r"the registry answered but does not have org\.example#wanted;9\.9"):
        fetch(tmp_path, "org.example:wanted:9.9")


def test_a_fetch_that_failed_goes_on_when_the_registry_is_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = registry.root / "org" / "example" / "helper"
    hidden.rename(tmp_path / "helper")
    use(registry.url, tmp_path, monkeypatch)
    with pytest.raises(StackError, match=r"does not have org\.example#helper;2\.0"):
        fetch(tmp_path)
    (tmp_path / "helper").rename(hidden)
    assert len(list(fetch(tmp_path).glob("*.jar"))) == 2


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_IVY_SETTINGS", str(tmp_path / "none.xml"))
    with pytest.raises(StackError, match=r"FEATURESTORE_IVY_SETTINGS: there is no file .*none\.xml"):
        fetch(tmp_path)
