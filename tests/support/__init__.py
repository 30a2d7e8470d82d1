"""What tests share: servers, raw connections, threads, terminals and witnesses.

On the path of every test as `support`; begin with `common`.
"""
