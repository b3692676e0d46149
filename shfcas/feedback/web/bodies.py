"""Bodies of the requests, checked field by field."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from shfcas.feedback.web.security import Refused

MAX_CHARACTERS = 10_000
MAX_SECONDS = 7 * 24 * 3600.0


def _bounded_comment(comment: str) -> str:
    # Not max_length: with a constraint, pydantic refuses half a surrogate pair, which a browser may send.
    if len(comment) > MAX_CHARACTERS:
        raise Refused(413, f"comment: expected at most {MAX_CHARACTERS:,} characters, got {len(comment):,}")
    return comment


Uuid = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9-]{8,64}$")]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Comment = Annotated[str, AfterValidator(_bounded_comment)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


class Body(BaseModel):
    """JSON object without unknown fields, and without conversions between types."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Empty(Body):
    """Object without fields."""


class SignIn(Body):
    """Sign-in with a token; a token of any other type is a wrong token, not a malformed request."""

    token: Any = None


class Ended(Body):
    """Session to end.

    Attributes:
        session: its public id.
    """

    session: ShortText


class Look(Body):
    """Question why a comparison was asked.

    Attributes:
        answer: id of the answer to it.
    """

    answer: Uuid


class Row(Body):
    """Fields of every row that the page adds to the log.

    Attributes:
        id: made by the page, so that a row that is sent again is written once.
        page_version: version of the page that sent it.
    """

    id: Uuid
    page_version: Annotated[str, StringConstraints(max_length=64)] = ""


class Answer(Row):
    """Answer to a comparison.

    Attributes:
        item: id of the comparison.
        shown: mark of the task; it tells which answer was on the left.
        choice: the answer.
        strength: how much better a side is, or None.
        comment: text for the log.
        seconds: how long the comparison was on the screen, or None.
    """

    item: ShortText
    shown: ShortText
    choice: Literal["left", "right", "tie", "both_bad", "skip", "flag"]
    strength: Literal["slightly", "clearly"] | None = None
    comment: Comment = ""
    seconds: Seconds | None = None

    @field_validator("strength")
    @classmethod
    def _check_strength(cls, strength: str | None, info: ValidationInfo) -> str | None:
        choice = info.data.get("choice", "left")  # a wrong choice has an error of its own
        if strength and choice not in ("left", "right"):
            raise PydanticCustomError("strength", "expected none with the choice {choice}", {"choice": choice})
        return strength


class Undo(Row):
    """Withdrawal of an answer.

    Attributes:
        undoes: id of the answer.
    """

    undoes: Uuid
