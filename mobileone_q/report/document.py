"""A JSON file with a schema number and a digest, checked when it is loaded and before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobileone_q.errors import FileError
from mobileone_q.files import DIGEST, is_sealed, read_json, sealed, write_json

SCHEMA: Literal[3] = 3
REMEDY = "make the run again with `mobileone-q calibrate`"

Self = TypeVar("Self", bound="Document")


class Document(BaseModel):
    """A file with a schema number, frozen, with no other fields than those declared.

    Numbers are finite: NaN and infinity are refused. On disk the fields are sealed with a digest, so
    that an edited file is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    schema_number: Literal[3] = Field(default=SCHEMA, alias="schema")

    @classmethod
    def load(cls: type[Self], path: Path) -> Self:
        """Read and check a file.

        Raises:
            FileError: it is missing, it is not JSON, it has another schema number, a field in it is
                missing, unknown or wrong, or it was edited.
        """
        value = read_json(path, REMEDY)
        if not isinstance(value, dict) or "schema" not in value:
            raise FileError(f"{path} is damaged: it has no field schema; {REMEDY}")
        number = value["schema"]
        if number != SCHEMA:
            raise FileError(f"{path} has schema {number!r}, and this version reads {SCHEMA}; {REMEDY}")
        fields = {key: inner for key, inner in value.items() if key != DIGEST}
        document = cls._checked(fields, f"{path} is damaged", REMEDY)
        if not is_sealed(value):
            raise FileError(f"{path} has changed since it was written (its digest does not fit); {REMEDY}")
        return document

    def save(self, path: Path) -> None:
        """Check once more and write the file, whole or not at all.

        Raises:
            FileError: a number in it is not finite, or the folder cannot be written to.
        """
        value = self.model_dump(by_alias=True)
        self._checked(value, f"cannot write {path}", "check the weights and the settings for such values")
        write_json(path, sealed(value))

    @classmethod
    def _checked(cls: type[Self], value: Any, problem: str, remedy: str) -> Self:
        try:
            return cls.model_validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise FileError(f"{problem}: {field}: {first['msg']}; {remedy}") from None
