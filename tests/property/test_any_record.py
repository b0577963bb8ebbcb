import json
import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from driver.model.fusemount import DetachedMount, FuseMount
from driver.model.paths import VolumePaths
from driver.model.publication import Publication
from driver.model.state import End, Past
from driver.volumes.recordformat import Record
from driver.volumes.records import Records

texts = st.text()
nodes = st.from_regex("[0-9a-f]{16}", fullmatch=True)
mounts = st.builds(FuseMount, st.binary(), texts, texts, texts, st.none() | nodes, st.booleans(), st.none() | st.integers(0, 2**32 - 1))
detached = st.builds(DetachedMount, mounts, texts)
paths = st.builds(VolumePaths, texts, st.text(st.characters(exclude_categories=("Cs",))), texts, texts)
publications = st.builds(Publication, texts, paths, texts, st.booleans(), st.lists(texts).map(tuple), texts, texts)
pasts = st.builds(Past, st.floats(0, 2e11), st.integers(0, (1 << 63) - 1), st.none() | st.sampled_from(End))
values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


@given(publications, st.lists(mounts, max_size=3).map(tuple), st.none() | pasts, st.lists(detached, max_size=2).map(tuple))
def test_any_record_comes_back_as_it_was(
    publication: Publication, mounts: tuple[FuseMount, ...], past: Past | None, detached: tuple[DetachedMount, ...]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = Records(folder)
        try:
            records.save(Record(publication, mounts, past, detached))
            (loaded,) = records.load()
            assert (loaded, loaded.publication.pod) == (Record(publication, mounts, past, detached), publication.pod)
        finally:
            os.close(records._files._lock)


@given(
    st.binary() | values.map(json.dumps).map(str.encode),
    publications,
    st.lists(mounts, max_size=3).map(tuple),
    st.dictionaries(texts, values),
)
def test_a_broken_record_does_not_affect_the_others(
    broken: bytes, publication: Publication, mounts: tuple[FuseMount, ...], change: dict[str, object]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = Records(folder)
        try:
            records.save(Record(publication, mounts))
            (name,) = os.listdir(folder)
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                content = json.load(file)
            with open(f"{folder}/0.json", "wb") as binary:
                binary.write(broken)
            for section in ("publication", "mount", "mounts", "past", "more"):
                with open(f"{folder}/1{section}.json", "w", encoding="utf-8") as file:
                    json.dump(content | {section: change}, file)
            with open(f"{folder}/1detached.json", "w", encoding="utf-8") as file:
                json.dump(content | {"more": {"detached": change}}, file)
            loaded = records.load()
            assert Record(publication, mounts) in loaded
            assert all(isinstance(each, Record) for each in loaded)
        finally:
            os.close(records._files._lock)
