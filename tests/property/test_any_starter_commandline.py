from hypothesis import given
from hypothesis import strategies as st

from fusermount3_proxy import starter
from fusermount3_proxy.starter import UsageError

WORDS = [
    "--fd-passing-socket-path",
    "--fd-passing-socket-path=/s",
    "--wait",
    "--wait=1",
    "--init",
    "--help",
    "--",
    "-",
    "",
    "/s",
    "sh",
    "1",
]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=8))
def test_the_parser_raises_only_its_own_error(words: list[str]) -> None:
    before = list(words)
    try:
        command = starter.parse(words)
    except UsageError as error:
        assert str(error)
        return
    finally:
        assert words == before
    if not command.help:
        assert command.socket_path
        assert command.program[0]
        assert words[-len(command.program) :] == command.program
        assert 0 <= command.wait < 1e9


@given(st.text(min_size=1), st.lists(st.text(), min_size=1).filter(lambda program: program[0] != ""))
def test_the_program_after_two_dashes_is_as_given(path: str, program: list[str]) -> None:
    command = starter.parse(["--fd-passing-socket-path", path, "--", *program])
    assert (command.socket_path, command.program) == (path, program)


names = st.sampled_from([b"LD_LIBRARY_PATH", b"LD_LIBRARY_PATH_ORIG", b"_PYI_X", b"PATH"]) | st.binary()


@given(st.dictionaries(names, st.just(b"/bundle") | st.just(b"/bundle:/x") | st.binary()), st.none() | st.just("/bundle"))
def test_an_environment_loses_only_the_bundles_variables(environment: dict[bytes, bytes], bundle: str | None) -> None:
    clean = starter.program_environment(environment, bundle)
    touched = {b"LD_LIBRARY_PATH", b"LD_LIBRARY_PATH_ORIG"}
    for name, value in environment.items():
        if name.startswith(b"_PYI_"):
            assert name not in clean
        elif name not in touched:
            assert clean[name] == value
    assert set(clean) <= set(environment)
    assert bundle is None or clean.get(b"LD_LIBRARY_PATH", b"").split(b":")[0] != b"/bundle" or b"LD_LIBRARY_PATH_ORIG" in environment
    if bundle is None:
        assert {name: environment[name] for name in touched & set(environment)} == {name: clean[name] for name in touched & set(clean)}
