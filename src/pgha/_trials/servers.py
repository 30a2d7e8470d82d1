"""The servers of a trial, and certificates for servers with TLS."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread

from pgha import chaos
from pgha._trials.trial import Setup
from pgha.chaos._servers.account import ask


def missing(setup: Setup) -> str:
    """Return what this machine lacks for the servers of `setup`, and what to do about it; "" if nothing.

    Block for a short time.
    """
    if setup.version is not None:
        try:
            chaos.find_installation(setup.version)
        except chaos.ChaosError as error:
            return str(error)
    if setup.tls and shutil.which("openssl") is None:
        return "the command openssl, which makes certificates, was not found: install OpenSSL"
    language = setup.settings.get("lc_messages")
    if language is not None and not _known(language):
        name, _, encoding = language.partition(".")
        return (
            f"locale {language} is missing: run localedef -i {name} -f {encoding} {language}"
            " (Debian: package locales)"
        )
    return ""


def _known(language: str) -> bool:
    try:
        names = ask("locale", "-a").stdout
    except FileNotFoundError:
        return False
    return language.lower().replace("-", "") in names.lower().replace("-", "").split()


@asynccontextmanager
async def servers(setup: Setup) -> AsyncGenerator[chaos.Nodes]:
    """Start the servers of the setup's topology, and remove them afterwards."""
    common: dict[str, Any] = {
        "version": setup.version,
        "settings": {"log_min_messages": "fatal", **setup.settings},
        "kind": setup.kind,
        "password": setup.password,
    }
    if lack := await to_thread.run_sync(missing, setup):
        raise chaos.ChaosError(lack)
    async with AsyncExitStack() as stack:
        if setup.tls:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgha-tls-"))
            common["tls"] = await to_thread.run_sync(_certificate, Path(folder))
        match setup.topology:
            case "masters":
                nodes: chaos.Nodes = await stack.enter_async_context(chaos.masters(setup.nodes, **common))
            case "replicas":
                topology = chaos.replicas(setup.nodes - 1, synchronous=setup.synchronous, **common)
                nodes = await stack.enter_async_context(topology)
            case "standalone":
                nodes = await stack.enter_async_context(chaos.standalone(setup.nodes, **common))
        yield nodes


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate and its key with the command openssl; return their paths."""
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-new", "-x509", "-days", "30", "-nodes", "-newkey", "rsa:2048"]
    command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    asked = ask(*command)
    if asked.returncode != 0:
        raise chaos.ChaosError(f"openssl could not make a certificate: {asked.stderr.strip()}")
    return certificate, key
