"""What a form has sent, looked at only after it has shown that it stood on a page of ours."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

from kadeploy import dates
from kadeploy.errors import OptionError, RightsError

TOKEN = "csrf"  # noqa: S105 - the name of a field
_MOST = 1000
"""Fields of one form."""


class Form:
    """The fields of a form, by name."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    @classmethod
    def read(cls, body: bytes) -> Form:
        """The form that a browser has sent as *body* (application/x-www-form-urlencoded).

        Raises:
            OptionError: it is none.
        """
        try:
            return cls(parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MOST, errors="strict"))
        except ValueError as error:
            raise OptionError("The form is not understood: load its page again, and send it once more.") from error

    def require_own(self, token: str) -> None:
        """Refuse a form that does not bring *token*, as all forms of our pages do.

        Raises:
            RightsError: it stood on another page, or on one of ours that has become old.
        """
        if not hmac.compare_digest(self.text(TOKEN).encode(), token.encode()):
            raise RightsError("This form is from another page, or from before you signed in: load its page again.")

    def has(self, name: str) -> bool:
        """Whether the field is there: a box that was ticked, a button that was pressed."""
        return name in self._fields

    def text(self, name: str, default: str = "") -> str:
        """What stands in the field, without white space around it; its last value if there are several."""
        return self.exact(name).strip() or default

    def exact(self, name: str) -> str:
        """What stands in the field, to the letter: passwords may begin with a space."""
        found = self._fields.get(name)
        return found[-1] if found else ""

    def all(self, name: str) -> list[str]:
        """All values of the field that are not empty."""
        return [each.strip() for each in self._fields.get(name, ()) if each.strip()]

    def line(self, name: str, label: str) -> str:
        """What stands in the field *label*, which others will read in one line.

        Raises:
            OptionError: it has characters that cannot be printed.
        """
        text = self.text(name)
        if not text.isprintable():
            raise OptionError(f"{label} is one line of text: leave out what cannot be printed.")
        return text

    def end(self, name: str, label: str) -> int | None:
        """The date in the field *label*, the last second of a day (Unix seconds); None where nothing stands there.

        Raises:
            OptionError: it is no date, or is over.
        """
        text = self.text(name)
        if not text:
            return None
        end = dates.moment(label, text, day_ends=True)
        if end <= time.time():
            raise OptionError(f"{label} {text}: this date is over.")
        return end
