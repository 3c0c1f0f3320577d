"""URLs of online stores. Pure.

    redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]                 one server
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]...     Redis Cluster: some of its nodes, which tell the others
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../MASTER[/DATABASE]     the server that these Sentinels call the master
    unix://[USER:PASSWORD@]/PATH                                   a Unix socket

``rediss`` in place of ``redis`` is TLS. Options follow a ``?``, by the names redis-py has for them (``OPTIONS``). The server's
certificate and its host name are always checked: what would turn that off is refused. User and password may be
percent-encoded, and have to be where they hold ``@``, ``/``, ``?``, ``#`` or ``%``.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, unquote

from featurestore.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

TLS_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")
OPTIONS = ("username", "password", "db", "sentinel_username", "sentinel_password", *TLS_OPTIONS)
_ALWAYS = {"ssl_cert_reqs": {"required"}, "ssl_check_hostname": {"true", "True", "yes", "1"}}
_SCHEMES = {
    f"redis{s}{kind}": (kind[1:] or "server", s == "s") for kind in ("", "+cluster", "+sentinel") for s in ("", "s")
}
_PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}


class Endpoint(NamedTuple):
    """Where a server listens: host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """Who a client says it is."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0

    @property
    def commands(self) -> list[tuple[bytes, ...]]:
        """What a connection begins with."""
        commands = []
        if self.password is not None:
            names = (self.username, self.password)
            commands.append((b"AUTH", *(name.encode() for name in names if name is not None)))
        if self.db:
            commands.append((b"SELECT", str(self.db).encode()))
        return commands


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL of an online store says.

    Attributes:
        kind: "server", "cluster", "sentinel" or "unix".
        hosts: The servers named: one; some of the cluster's nodes; the Sentinels.
        login: Credentials and database.
        master: The name the Sentinels know the master by.
        sentinel_login: Credentials for the Sentinels.
        tls: The settings of TLS; None without it.
    """

    kind: str
    hosts: tuple[Endpoint, ...]
    login: Login = field(default_factory=Login)
    master: str = ""
    sentinel_login: Login = field(default_factory=Login)
    tls: ssl.SSLContext | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


def safe_url(url: str) -> str:
    """Return a URL without user, password and options, which can hold a password too.

    >>> safe_url("redis+cluster://u:p@a:1,b:2?ssl_password=x")
    'redis+cluster://a:1,b:2'
    """
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"


def parse_url(url: str) -> Address:
    """Return what a URL says.

    Raises:
        ConfigError: It is no URL of an online store. The message holds neither password nor options' values.
    """
    try:
        return _parse(url)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"online url {safe_url(url)!r} is not usable: {error}.",
            hint="write it like redis://localhost:6379; percent-encode what is special in a password.",
        ) from None


def _parse(url: str) -> Address:
    scheme, separator, rest = url.partition("://")
    if not separator or (scheme != "unix" and scheme not in _SCHEMES):
        raise ValueError(f"it begins with none of {', '.join((*_SCHEMES, 'unix'))}")
    rest, _, query = rest.partition("?")
    credentials, _, place = rest.rpartition("@")
    options = _options(query)
    user, has_password, password = credentials.partition(":")
    login = Login(
        options.get("username", unquote(user)) or None,
        options.get("password", unquote(password) if has_password else None),
        _number(options.get("db", "0"), "database"),
    )
    if login.username and login.password is None:
        raise ValueError("it has a user without a password")
    if scheme == "unix":
        if any(name.startswith(("ssl_", "sentinel_")) for name in options):
            raise ValueError("a Unix socket takes no options of TLS or Sentinel")
        if not place.startswith("/"):
            raise ValueError("the path of the socket is not absolute")
        return Address("unix", (Endpoint("", 0, unquote(place)),), login, options=options)
    kind, is_tls = _SCHEMES[scheme]
    tls = None
    if is_tls:
        tls = _context(options)
    elif any(name.startswith("ssl_") for name in options):
        raise ValueError("options of TLS need a scheme of TLS, rediss")
    hosts, _, path = place.partition("/")
    master = ""
    if kind == "sentinel":
        master, _, path = unquote(path).partition("/")
        if not master:
            raise ValueError("the name of the master is missing: redis+sentinel://HOST:PORT,HOST:PORT/MASTER")
    elif any(name.startswith("sentinel_") for name in options):
        raise ValueError("options of Sentinel need a URL of Sentinels")
    if path:
        login = Login(login.username, login.password, _number(path, "database"))
    if kind == "cluster" and login.db:
        raise ValueError("a cluster has only database 0")
    ends = tuple(_endpoint(host, _PORTS[kind]) for host in hosts.split(",")) if hosts else ()
    if kind == "server" and not ends:
        ends = (Endpoint("localhost", _PORTS[kind]),)
    if not ends or (kind == "server" and len(ends) > 1):
        raise ValueError("it names no host" if not ends else "several hosts are a cluster's or Sentinels'")
    sentinel_login = Login(options.get("sentinel_username"), options.get("sentinel_password"))
    return Address(kind, ends, login, master, sentinel_login, tls, options)


def _options(query: str) -> dict[str, str]:
    options = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _ALWAYS:
            if value not in _ALWAYS[name]:
                raise ValueError(
                    f"option {name} would leave the server's certificate or name unchecked; "
                    "name the authority that signed it with ssl_ca_certs"
                )
        elif name in OPTIONS:
            options[name] = value
        else:
            hint = did_you_mean(name, OPTIONS, what="options") if name.isidentifier() else None
            raise ValueError(f"unknown option {name}; {hint}" if hint else "it has an unknown option")
    return options


def _number(text: str, what: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"the {what} is not a number")  # the text may be part of a password that is not encoded
    return int(text)


def _endpoint(text: str, default_port: int) -> Endpoint:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 address is not closed by ]")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError("a host is missing")
    number = _number(port, "port") if port else default_port
    if not 0 < number < 1 << 16:
        raise ValueError("the port is not one of 1 to 65535")
    return Endpoint(host, number)


def _context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Return settings that check the server's certificate and host name."""
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "ssl_ca_path"):
        if name in options and not os.access(options[name], os.R_OK):
            raise ValueError(f"{name} {options[name]!r} is no file that can be read")
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    if "ssl_certfile" in options:
        # A function as password: without one, a key that has a password would be asked for on the terminal.
        password = options.get("ssl_password", "")
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), lambda: password)
    elif "ssl_keyfile" in options:
        raise ValueError("ssl_keyfile needs ssl_certfile")
    return context
