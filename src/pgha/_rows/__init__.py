"""Results: rows as tuples, dicts, models or JSON.

`result` is the object that callers get; `columns` describes its columns, `models` fills dataclasses and the
like, `json` makes JSON text from the server's values, `timestamps` reads and writes theirs. Imports
`pgha._core`, `pgha._errors` and `pgha._types`. Begin with `result`.
"""
