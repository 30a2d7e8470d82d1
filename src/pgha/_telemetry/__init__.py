"""What pgha tells of itself: its log.

`digest` makes few lines of many facts, and is pure; `log` hands the lines to `logging`. The package may
import `_types` and `_errors`. Begin reading at `digest`.
"""
