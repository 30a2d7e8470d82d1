"""The settings of the session that a statement's text shows: `set_config`, and UPDATE of pg_settings.

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
# A rule of this view calls `set_config` for the session.
_VIEW: Final = re.compile(
    rb'\bUPDATE (?:ONLY )?(?:(?:PG_CATALOG|"pg_catalog") \. )?(?:PG_SETTINGS\b|"pg_settings")'
)


def may_set_session(text: bytes, upper: bytes, start: int) -> bool:
    """Return whether a setting that the text makes, from ``start`` on, may outlive its transaction.

    ``upper`` is the text in upper case.
    """
    if b"SET_CONFIG" not in upper and b"PG_SETTINGS" not in upper:
        return False
    statement = b" ".join(normalised(text, start))
    return bool(_VIEW.search(statement)) or len(_SETTER.findall(statement)) > len(
        _LOCAL_SETTER.findall(statement)
    )
