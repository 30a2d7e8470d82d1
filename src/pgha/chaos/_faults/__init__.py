"""Faults: their kinds, how each is injected and healed, schedules of them.

`kinds` is the vocabulary, `acts` injects one fault, `injector` keeps track of what is broken, `schedule` and
`script` are plans that can be printed and run again. Imports nodes and proxies. Begin with `injector`.
"""
