from hypothesis import given
from hypothesis import strategies as st
from option_text import escape

from fusermount3_proxy.wire import options
from fusermount3_proxy.wire.options import OptionError

ascii_names = [*options.FLAGS, *options.ACCESS, *options.UNSAFE, *options.SKIPPED, "auto_unmount", "large_read"]
known = (
    st.sampled_from(ascii_names)
    | st.builds("fsname={}".format, st.text(max_size=8).map(escape))
    | st.builds("subtype={}".format, st.text(max_size=8).map(escape))
    | st.builds("{}={}".format, st.sampled_from([*options.NUMBERS, "fd", "rootmode", "user_id", "group_id"]), st.integers(0, 9999))
)
near = st.sampled_from([*"\\,=", "fsname=", "subtype=", "fsname", "max_read=", "x-", "ro", "blkdev", "", "\0"])
texts = st.text() | st.lists(known | near).map(",".join) | st.lists(near).map("".join)


@given(texts)
def test_the_parser_raises_only_its_own_error(text: str) -> None:
    try:
        found = options.parse(text)
    except OptionError as error:
        assert str(error)
        return
    assert set(found.flags) <= {flag for flag, _ in options.FLAGS.values()}
    assert found.access <= set(options.ACCESS)
    assert set(found.numbers) <= set(options.NUMBERS)


@given(texts)
def test_splitting_loses_no_character(text: str) -> None:
    parts = options.split(text)
    assert ",".join(parts) == text.removesuffix(",") or ",".join(parts) == text


@given(st.text())
def test_what_is_escaped_is_unescaped_again(value: str) -> None:
    assert options.unescape(escape(value)) == value


@given(st.text())
def test_unescaping_loses_backslashes_alone(value: str) -> None:
    assert options.unescape(value).replace("\\", "") == value.replace("\\", "")


@given(st.text(), st.text(), st.lists(known, max_size=4))
def test_names_of_any_characters_reach_the_values(fsname: str, subtype: str, others: list[str]) -> None:
    others = [option for option in others if not option.startswith(("fsname=", "subtype="))]
    parts = [f"fsname={escape(fsname)}", *others, f"subtype={escape(subtype)}"]
    text = ",".join(parts)
    assert options.split(text) == parts
    found = options.parse(text)
    assert (found.fsname, found.subtype) == (fsname, subtype)


@given(st.lists(known))
def test_known_options_are_taken_in_any_number_and_order(parts: list[str]) -> None:
    options.parse(",".join(parts))


@given(st.lists(st.sampled_from(sorted(options.FLAGS)), min_size=1))
def test_the_last_flag_wins(names: list[str]) -> None:
    found = options.parse(",".join(names))
    last: dict[str, bool] = {}
    for name in names:
        flag, on = options.FLAGS[name]
        last[flag] = on
    assert found.flags == last
