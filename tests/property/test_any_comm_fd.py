import ctypes

from hypothesis import given
from hypothesis import strategies as st

from fusermount3_proxy import fusermount3

LIBC = ctypes.CDLL(None)

digits = st.text(st.sampled_from("0123456789"), max_size=24)
numbers = st.builds(
    "{}{}{}{}".format,
    st.text(st.sampled_from(" \t\n\v\f\r"), max_size=2),
    st.sampled_from(["", "+", "-", "--"]),
    digits
    | st.integers(0, 2**66).map(str)
    | st.builds(lambda zeros, number: "0" * zeros + str(number), st.integers(0, 30), st.integers(0, 2**32)),
    st.text(max_size=2),
)


@given(numbers | st.text())
def test_the_number_is_the_one_of_atoi(text: str) -> None:
    # An environment variable can hold neither lone surrogates nor NUL.
    text = text.encode("utf-8", "ignore").decode().replace("\0", "")
    assert fusermount3._atoi(text) == LIBC.atoi(text.encode())
