"""Compares throughput and failover of pgha and other clients on the same servers, as ratios in one run."""
