"""The settings of the session that a statement's text shows: calls of `set_config`.

A setting for the session outlives the operation on a connection that many callers share. The calls are found
in the normalised text, so that no literal, quoted name or comment can deceive the rule.
"""

import re
from typing import Final

from pgha._core.tokens import normalised

# All calls, and those whose last argument says that the setting ends with the transaction. An argument with
# brackets may be anything, so such a call counts as one that outlives the transaction.
_SETTER: Final = re.compile(rb'(?:\bSET_CONFIG|"set_config") \(')
_LOCAL_SETTER: Final = re.compile(rb'(?:\bSET_CONFIG|"set_config") \( [^()]*+(?<=, TRUE )\)')


def may_set_session(text: bytes, start: int) -> bool:
    """Return whether a `set_config` of the text, from ``start`` on, may outlive its transaction."""
    statement = b" ".join(normalised(text, start))
    return len(_SETTER.findall(statement)) > len(_LOCAL_SETTER.findall(statement))
