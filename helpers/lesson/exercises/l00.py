"""Checks of the exercises of lesson 00."""

from helpers.lesson.checks import exercise, near


@exercise("00.1")
def float16_bytes(answer):
    if near(answer, 14e9):
        return None
    if near(answer, 14):
        return "that is gigabytes; give bytes"
    if near(answer, 28e9):
        return "that is float32, four bytes a number"
    if near(answer, 7e9 * 16):
        return "those are bits; eight make a byte"
    return "parameters times bytes a parameter; 16 bits are two bytes"


@exercise("00.2")
def four_bit_bytes(answer):
    if near(answer, 3.5e9):
        return None
    if near(answer, 3.5):
        return "that is gigabytes; give bytes"
    if near(answer, 28e9):
        return "those are bits; eight make a byte"
    if near(answer, 7e9):
        return "that is one byte a weight; two 4-bit codes share a byte"
    return "parameters times 4 bits, in bytes"


@exercise("00.3")
def has_bfloat16(answer):
    if not callable(answer):
        return "give a function of c, such as lambda c: ..."
    if answer((7, 5)):
        return "it says yes for a T4, (7, 5)"
    if not answer((8, 0)):
        return "it says no for (8, 0), which is the first that has them"
    if not answer((9, 0)) or not answer((8, 9)):
        return "it says no for a later GPU, such as (8, 9) or (9, 0); compare the pairs as a whole"
    return None


@exercise("00.4")
def status_of(answer):
    if not callable(answer):
        return "give a function of free and needed that returns a status"
    said = {free: answer(free, 1000) for free in (500, 1000, 1050, 2000)}
    if {str(s) for s in said.values()} - {"OK", "WARN", "FAIL"}:
        return f'it says {said[500]!r}; the three statuses are "OK", "WARN" and "FAIL", in capitals'
    if said[500] != "FAIL":
        return f"with 500 free of 1000 needed it says {said[500]}, and there is too little"
    if said[1000] != "WARN":
        return f"with 1000 free of 1000 needed it says {said[1000]}: that is enough, and nothing to spare"
    if said[1050] != "WARN":
        return f"with 1050 free of 1000 needed it says {said[1050]}; a tenth to spare would be 1100"
    if said[2000] != "OK":
        return f"with 2000 free of 1000 needed it says {said[2000]}, and that is plenty"
    return None
