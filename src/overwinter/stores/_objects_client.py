"""From a URL and options to an obstore client, and what may be promised of the server behind it.

This file knows obstore's constructors and settings. It sends no request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from ..errors import UsageError
from .base import Durability

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

__all__ = ["address_of", "connect", "durability_of"]

_SCHEMES = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"
_MAX_PREFIX = 400  # bytes; the longest name takes 601 of the 1,024 that providers allow
_CLOUDS = ("amazonaws.com", "amazonaws.com.cn", "googleapis.com", "core.windows.net")
_ENDPOINTS = (
    ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("GOOGLE_BASE_URL", "GCS_BASE_URL"),
    ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_USE_EMULATOR", "AZURE_STORAGE_USE_EMULATOR"),
)


def connect(target: object, timeout: float, options: Mapping[str, Any]) -> S3Store | GCSStore | AzureStore:
    """Return a client for *target*, a URL or a client already.

    A client made here doesn't repeat requests: what became of a write is then known better.
    """
    try:
        from obstore import exceptions, store  # noqa: PLC0415  # the driver loads on first use
    except ModuleNotFoundError:
        raise UsageError("an ObjectStore needs obstore: python3 -m pip install '.[objects]' in a checkout") from None
    if isinstance(target, str):
        _check(target)
        limits = {"timeout": timedelta(seconds=timeout), "connect_timeout": timedelta(seconds=min(5.0, timeout))}
        client_options = {**limits, "pool_idle_timeout": timedelta(seconds=15), **options.get("client_options", {})}
        rest = {"retry_config": {"max_retries": 0}, **options, "client_options": client_options}
        try:
            client = cast("Any", store.from_url)(target, **rest)
        except (exceptions.BaseError, ValueError, TypeError) as error:
            names = ", ".join(sorted(options)) or "none"
            raise UsageError(
                f"{address_of(target)}: obstore refuses the URL or the options ({names}) with {type(error).__name__}: "
                "see the options of its S3Store, GCSStore or AzureStore"
            ) from None
    elif options:
        raise UsageError(f"an obstore client has its options already: {', '.join(sorted(options))} can't be set here")
    else:
        client = target
    if not isinstance(client, store.S3Store | store.GCSStore | store.AzureStore):
        raise UsageError(
            f"an ObjectStore needs a URL like {_SCHEMES}, or an obstore S3Store, GCSStore or AzureStore, not a "
            f"{type(client).__name__}: for a folder use FileStore, for memory MemoryStore"
        )
    if len((client.prefix or "").encode()) > _MAX_PREFIX:
        raise UsageError(f"the prefix of an ObjectStore has more than {_MAX_PREFIX} bytes: use a shorter one")
    return client


def address_of(target: object) -> str:
    """Return how errors call it; without anything secret."""
    if isinstance(target, str):
        return target.rstrip("/")
    config: Mapping[str, Any] = getattr(target, "config", {})
    place = config.get("bucket") or config.get("container_name") or "bucket"
    scheme = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}.get(type(target).__name__, "objects")
    return "/".join(filter(None, (f"{scheme}://{place}", getattr(target, "prefix", None))))


def durability_of(client: S3Store | GCSStore | AzureStore) -> Durability:
    """A cloud keeps several copies; of a server at an address of one's own no more is known than that it has a disk."""
    from obstore import store  # noqa: PLC0415  # as above

    config = cast("Mapping[str, Any]", client.config)
    kind = 0 if isinstance(client, store.S3Store) else 1 if isinstance(client, store.GCSStore) else 2
    own = [config.get(name) for name in ("aws_endpoint_url_s3", "endpoint", "base_url", "use_emulator")]
    own += [os.environ.get(name) for name in _ENDPOINTS[kind]]
    return Durability.REPLICATED if all(map(_in_cloud, filter(None, own))) else Durability.HOST


def _in_cloud(endpoint: object) -> bool:
    host = str(endpoint).partition("://")[2].partition("/")[0].partition(":")[0]
    return any(host == cloud or host.endswith("." + cloud) for cloud in _CLOUDS) or str(endpoint) in ("False", "false")


def _check(url: str) -> None:
    scheme, colon, rest = url.partition("://")
    if not colon or not scheme.isalnum():
        raise UsageError(f"the URL of an ObjectStore has no scheme: use one like {_SCHEMES}")
    place = rest.partition("/")[0]
    if ("@" in place and not scheme.startswith("abfs")) or "?" in rest or "#" in rest:  # abfs://container@account
        raise UsageError(
            f"the URL of an ObjectStore holds no credentials and no options, only a place: use one like {_SCHEMES}, "
            "and keyword arguments or the environment for the rest"
        )
