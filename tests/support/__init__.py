"""Helpers that tests share: servers, raw connections, threads, terminals and witnesses.

Every test can import this package as `support`. Begin with `common`.
"""
