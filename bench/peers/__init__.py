"""The compared clients, each opened as its own documentation recommends, behind a common Protocol."""

from bench.peers._client import INSERT as INSERT
from bench.peers._client import MANY as MANY
from bench.peers._client import POOL as POOL
from bench.peers._client import SCHEMA as SCHEMA
from bench.peers._client import AsyncContestant as AsyncContestant
from bench.peers._client import Client as Client
