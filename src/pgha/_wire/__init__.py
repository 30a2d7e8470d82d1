"""The only place that touches libpq through psycopg's lower layers, and sockets."""

from psycopg.pq import ConnStatus
from psycopg.pq.abc import PGconn as PGconn
from psycopg.pq.abc import PGresult as PGresult

OK = ConnStatus.OK
