"""Numbers out of DICOM elements, however they were written."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from msformer_fast.errors import InputError

_BINARY = {
    **{"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "UV": "u8", "SV": "i8", "FL": "f4", "FD": "f8"},
    **{"OW": "u2", "OB": "u2", "OF": "f4", "OD": "f8"},
}
# A comma can only be a decimal one: these texts have no separators of thousands.
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")


def value_representation(dataset: Any, keyword: str) -> str:
    """In which an element is written, two letters; by the dictionary (unsigned if that leaves it open) otherwise."""
    from pydicom.datadict import dictionary_VR

    vr = str(dataset.get_item(keyword).VR or "UN")
    return (dictionary_VR(keyword) if vr == "UN" else vr)[:2]


def numbers(dataset: Any, keyword: str) -> list[float]:
    """The numbers of an element: empty where it is absent or empty, NaN for what is no number.

    Texts are read with a decimal comma too; numbers in a VR of other type than the standard's are read as that VR says.
    """
    element = dataset.get_item(keyword)
    if element is None or element.value is None or element.value == b"" or element.value == "":
        return []
    value = element.value
    if not isinstance(value, bytes):  # not as it was read, but set or converted already
        values = [value] if isinstance(value, (str, float, int)) else list(value)
        return [_number(str(each)) for each in values]
    form = _BINARY.get(value_representation(dataset, keyword))
    if form is None:
        return [_number(each) for each in value.decode("latin-1").split("\\")]
    dtype = np.dtype(form).newbyteorder("<" if getattr(element, "is_little_endian", True) else ">")
    return [float(each) for each in np.frombuffer(value[: len(value) // dtype.itemsize * dtype.itemsize], dtype)]


def whole(dataset: Any, keyword: str, name: str, default: int | None = None) -> int:
    """The whole number of an element.

    Raises:
        InputError: it is absent and there is no default, or no whole number; the message names the attribute.
    """
    found = numbers(dataset, keyword)
    if not found:
        if default is None:
            raise InputError(f"{name}: lacks {described(keyword)}, without which its pixels cannot be read")
        return default
    if not found[0].is_integer():  # nor is NaN
        raise InputError(f"{name}: its {described(keyword)} is no whole number; export it again")
    return int(found[0])


def described(keyword: str) -> str:
    """The standard's name of an attribute."""
    from pydicom.datadict import dictionary_description, tag_for_keyword

    return dictionary_description(tag_for_keyword(keyword) or keyword)


def _number(text: str) -> float:
    text = text.strip(" \0")
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.nan
