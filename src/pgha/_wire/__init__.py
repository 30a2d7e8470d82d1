"""The only place that touches libpq through psycopg's lower layers, and sockets."""
