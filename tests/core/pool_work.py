"""What the processes of a pool can import, which a test file is not."""

import os


def square(number: int) -> dict:
    return {"value": number**2, "process": os.getpid()}


def fails_at_two(number: int) -> dict:
    if number == 2:
        raise ArithmeticError("two is not allowed")
    return square(number)
