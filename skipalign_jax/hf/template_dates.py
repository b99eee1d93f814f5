"""The date that a chat template prints as today's.

transformers gives templates a clock, `strftime_now`. With it a prompt would change at
midnight, in the middle of a run, between two starts of it, or between its samples and
its evaluations. So a tokenizer has one date here, and a macro of the clock's name that
knows no other. The macro is put before the template when it is rendered, and is not
part of the template: an exported tokenizer prints the date of its day.
"""

from __future__ import annotations

import datetime
import functools
import re
from typing import TYPE_CHECKING, Any

from skipalign_jax.runtime import errors

if TYPE_CHECKING:
  import transformers

_CLOCK = "strftime_now"
_PERCENT = "\ue003"  # private use: stands for %% while directives are replaced
_DIRECTIVE = re.compile(r"%-?[A-Za-z]")
# What depends on the locale, which matplotlib may set, as it is in the C locale.
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = (
  "January February March April May June July August September October November "
  "December"
).split()
_COMPOSED = {
  "%c": "%a %b %e %H:%M:%S %Y",
  "%r": "%I:%M:%S %p",
  "%x": "%m/%d/%y",
  "%X": "%H:%M:%S",
}
_ATTRIBUTE = "date_of_templates"  # of a tokenizer


def today() -> str:
  """The date of this machine, YYYY-MM-DD."""
  return datetime.date.today().isoformat()


def set_date(
  tokenizer: transformers.PreTrainedTokenizerBase,
  date: str,
  setting: str = "data.date",
) -> None:
  """Makes `date` the one that the tokenizer's chat template prints, in place.

  Args:
    tokenizer: may have a template with a clock.
    date: YYYY-MM-DD; "" for today.
    setting: the key or flag that has the date, for messages.

  Raises:
    UserError: it is not a date.
  """
  try:
    parsed = datetime.date.fromisoformat(date or today())
  except ValueError as error:
    raise errors.UserError(
      f"{setting}={date} is not a date; give one as YYYY-MM-DD, such as 2024-07-26"
    ) from error
  setattr(tokenizer, _ATTRIBUTE, parsed.isoformat())


def date_of(tokenizer: transformers.PreTrainedTokenizerBase) -> str | None:
  """The date that the tokenizer's chat template may print; None without a clock."""
  if _CLOCK not in str(tokenizer.chat_template):
    return None
  return getattr(tokenizer, _ATTRIBUTE, None) or today()


def with_date(
  tokenizer: transformers.PreTrainedTokenizerBase, **options: Any
) -> str | None:
  """The tokenizer's chat template with its date; None if it is to be used as it is.

  Args:
    tokenizer: carries the template.
    **options: of `apply_chat_template`; tools may have a template of their own.
  """
  date = date_of(tokenizer)
  if date is None:
    return None
  template = tokenizer.get_chat_template(tools=options.get("tools"))
  return _macro(template, date) + template


@functools.lru_cache(maxsize=64)
def _macro(template: str, date: str) -> str:
  """A macro that knows the directives in a template's text; the time is midnight."""
  moment = datetime.datetime.fromisoformat(date)
  replaced = "".join(
    f".replace({code!r}, {_written(moment, code)!r})"
    for code in sorted(set(_DIRECTIVE.findall(template)))
  )
  return (
    f"{{% macro {_CLOCK}(format) %}}"
    f"{{{{ format.replace('%%', '{_PERCENT}'){replaced}.replace('{_PERCENT}', '%') }}}}"
    "{% endmacro %}\n"
  )


def _written(moment: datetime.datetime, code: str) -> str:
  """What a directive writes in the C locale; `moment` is a midnight."""
  day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
  names = {"%a": day[:3], "%A": day, "%b": month[:3], "%B": month, "%h": month[:3]}
  names["%p"] = "AM"
  if code in _COMPOSED:
    part = lambda match: _written(moment, match[0])
    return _DIRECTIVE.sub(part, _COMPOSED[code])
  return names.get(code) or moment.strftime(code)
