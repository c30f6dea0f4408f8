import pytest

from mobileone_q.data.imagenet import FILE, imagenet_names, in_words, wordnet_ids


def test_every_class_has_an_id_and_a_name_of_its_own():
    ids, names = wordnet_ids(), imagenet_names()
    assert len(set(ids)) == len(set(names)) == 1000
    assert list(ids) == sorted(ids)  # the order of ImageNet's folders, and so of the class numbers
    known = {0: "tench", 134: "crane (wading bird)", 517: "crane (lifting device)", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known


def test_the_file_says_whose_names_they_are():
    text = FILE.read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in text
    assert "Permission to use, copy, modify and distribute" in text


@pytest.mark.shared
def test_the_ids_are_those_of_a_real_folder(shared):
    listed = (shared / "imagenet-sample" / "classes.txt").read_text().splitlines()
    assert wordnet_ids() == tuple(line.split()[0] for line in listed)


def test_only_imagenet_s_ids_become_words():
    assert in_words(wordnet_ids()) == imagenet_names()
    for others in (wordnet_ids()[::-1], wordnet_ids()[:10], ("cat", "dog")):
        assert in_words(others) == others
