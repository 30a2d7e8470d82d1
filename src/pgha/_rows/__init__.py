"""Results: rows as tuples, dicts, models or JSON.

`result` is the object that callers get; `columns` describes its columns, `models` makes objects of user
classes, `json` makes JSON text from the server's values, `timestamps` converts PostgreSQL's dates and times.
The package imports `pgha._core`, `pgha._errors` and `pgha._types`. Begin with `result`.
"""
