"""What the values of a job may be made of, where a shell's quotes would not help: names, paths and options that other programs read.

`gcloud`, `sbatch` and `scp` interpret some characters themselves, and the lines `#SBATCH` are no shell. launch/README.md lists the
alphabets. All other values are quoted where they enter a script (`job_templates`).
"""

import dataclasses
import re
from typing import Annotated, Any, get_type_hints

import pydantic

from adalink_jax.errors import UserError
from adalink_jax.typed_values import wrong

_PART = r"[A-Za-z0-9_.+=,@][A-Za-z0-9_.+=,@-]*"  # of a path


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The texts that match a pattern as a whole; `words` complete the sentence "it must be ...". A validator for pydantic."""

    pattern: str
    words: str

    def __call__(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text, re.ASCII | re.DOTALL):
            raise ValueError(self.words)
        return text


LABEL = Alphabet(
    r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
    "at most 63 lower-case letters, digits and -, the first a letter, the last not -",
)
NAME = Alphabet(r"[A-Za-z0-9_][\w.,:@/+=-]*", "letters, digits and _ . , : @ / + = -, the first a letter, a digit or _")
PATH = Alphabet(
    rf"/*{_PART}(/+{_PART})*/*", "a path of letters, digits and _ . + = , @ -, of which no part begins with -"
)
TIME = Alphabet(r"\d+(-\d+)?(:\d+){0,2}|UNLIMITED", "a time of Slurm's, such as '24:00:00', '2-12:00' or 'UNLIMITED'")
OPTION = Alphabet(r"-[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", "an option in one line that begins with -")
NUMBER = Alphabet(r"\d{1,10}", "the number of a job")
SECRET_KEY = Alphabet(r"[a-z0-9][-a-z0-9.]*/[-._A-Za-z0-9]+", "SECRET/KEY, a secret of Kubernetes and its key")
VARIABLE = Alphabet(r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and _, the first not a digit")
TEXT = Alphabet(r"[^\x00\ud800-\udfff]*", "a text of Unicode characters without NUL")

Label = Annotated[str, pydantic.AfterValidator(LABEL)]
Name = Annotated[str, pydantic.AfterValidator(NAME)]
Path = Annotated[str, pydantic.AfterValidator(PATH)]
Time = Annotated[str, pydantic.AfterValidator(TIME)]
Option = Annotated[str, pydantic.AfterValidator(OPTION)]
Number = Annotated[str, pydantic.AfterValidator(NUMBER)]
Text = Annotated[str, pydantic.AfterValidator(TEXT)]
SecretKey = Annotated[str, pydantic.AfterValidator(SECRET_KEY)]
Variable = Annotated[str, pydantic.AfterValidator(VARIABLE)]
Env = dict[Variable, Text]
Count = Annotated[int, pydantic.Field(ge=1)]
Amount = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Status = Annotated[int, pydantic.Field(ge=1, le=255)]
CountOrZero = Annotated[int, pydantic.Field(ge=0)]


def require(value: object, annotation: Any, subject: str, remedy: str = "") -> None:
    """Checks a value.

    Args:
      value: the value.
      annotation: its type, such as `Path`.
      subject: what the value is, the beginning of the error message.
      remedy: the end of the error message, such as "give another --folder".

    Raises:
      UserError: if the value is not of this type.
    """
    if problem := wrong(value, annotation):
        raise UserError(f"{subject} {problem}{remedy and f'; {remedy}'}.")


def check_settings(settings: object) -> None:
    """Checks the fields of a launcher's settings, a dataclass, whose macros have the same names in upper case.

    Raises:
      UserError: for the first field that is not of its type.
    """
    for name, annotation in get_type_hints(type(settings), include_extras=True).items():
        require(getattr(settings, name), annotation, name.upper())
