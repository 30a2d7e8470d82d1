"""Throughput and failover of pgha beside its peers, on one server, in one run, as ratios."""
