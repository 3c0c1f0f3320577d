"""redis-py's own client of an online store: what tests look around with, and do harm by."""

from __future__ import annotations

from functools import cache

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurestore.online.redis_url import TLS_OPTIONS, parse_url


def raw(store):
    """Return the client of the store's server."""
    return client_of(store.url)


@cache
def client_of(url, timeout_s=10.0):
    address = parse_url(url)
    login = address.login
    options = {
        "username": login.username,
        "password": login.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": False,
    }
    first = address.hosts[0]
    if address.kind == "unix":
        return redis.Redis(unix_socket_path=first.path, db=login.db, **options)
    if address.tls is not None:
        options |= {"ssl": True} | {name: value for name, value in address.options.items() if name in TLS_OPTIONS}
    if address.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(host.host, host.port) for host in address.hosts]
        return redis.cluster.RedisCluster(startup_nodes=nodes, **options)
    if address.kind == "sentinel":
        options["db"] = login.db
        its_own = {"username": address.sentinel_login.username, "password": address.sentinel_login.password}
        watched = [(each.host, each.port) for each in address.hosts]
        return redis.sentinel.Sentinel(watched, sentinel_kwargs={**options, **its_own, "db": 0}, **options).master_for(
            address.master
        )
    return redis.Redis(first.host, first.port, db=login.db, **options)
