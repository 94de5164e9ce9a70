"""kvit.errors: the classes, and what else they are."""

import pytest

from kvit import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.KvitError)]


def test_every_error_is_a_kvit_error_and_one_builtin():
    assert len(CLASSES) == 12
    for cls in CLASSES:
        if cls is not errors.KvitError:
            assert issubclass(cls, ValueError) != issubclass(cls, RuntimeError)


@pytest.mark.parametrize("name", ["ShapeError", "DtypeError", "DeviceError", "LayoutError"])
def test_a_wrong_argument_is_a_value_error(name):
    assert issubclass(getattr(errors, name), ValueError)


def test_a_driver_error_carries_the_status_and_the_call():
    error = errors.DriverError("cuInit failed with CUresult 999", 999, "cuInit")
    assert (str(error), error.status, error.call) == ("cuInit failed with CUresult 999", 999, "cuInit")
