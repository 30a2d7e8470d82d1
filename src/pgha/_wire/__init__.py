"""The only package that touches libpq, psycopg's private modules and sockets.

`connect` opens a connection, `link` sends segments on that connection and reads their answers, `segment` and
`compiler` build what is sent, `loops` waits for sockets on trio and asyncio. The package imports
`pgha._options` and the layers below. Begin with `link`.
"""

from psycopg.pq import ConnStatus
from psycopg.pq.abc import PGconn as PGconn
from psycopg.pq.abc import PGresult as PGresult

OK = ConnStatus.OK
