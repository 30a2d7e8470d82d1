"""PostgreSQL servers on this machine: found, initialised, started, stopped, killed and frozen.

`node` is the class that users of the kit hold; `server` and `runner` start and end processes, `warden`
removes them when this program dies, `template` and `cache` save the time of `initdb`. Imports only from the
kit. Begin with `node`.
"""
