"""Files of results that grow must be whole after every entry, also where entries are taken back."""

import json

import pytest

from dqdet.formats.results import GrowingList


@pytest.mark.parametrize("name", [None, "images"])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_list_is_whole_after_entries_are_taken_back(tmp_path, name, kept):
    file = tmp_path / "list.json"
    entries = [{"id": number} for number in range(3)]
    growing = GrowingList(file, name)

    def written():
        document = json.loads(file.read_text())
        return document if name is None else document[name]

    growing.extend(entries[:kept])
    end = growing.end
    growing.extend(entries)
    growing.cut(end)
    assert written() == entries[:kept]
    growing.extend(entries[1:])
    assert written() == entries[:kept] + entries[1:]
