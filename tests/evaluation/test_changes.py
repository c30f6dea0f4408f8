"""Which answers change: counted by hand on a few logits."""

import numpy as np
import pytest

from mobileone_q.evaluation.changes import MOST_CLASSES, MOST_IMAGES, ChangesSum


def answer_changes(fp32, int8, labels, name=str):
    """What changed, gathered in batches of three."""
    gathered = ChangesSum()
    for start in range(0, len(labels), 3):
        gathered.add(*(values[start : start + 3] for values in (fp32, int8, labels)))
    return gathered.result(name)


def logits(best, classes=4, height=2.0):
    values = np.zeros((len(best), classes), np.float32)
    values[np.arange(len(best)), best] = height
    return values


def test_lost_answers_come_first_and_then_the_surest():
    fp32 = logits([0, 1, 2, 3])
    fp32[3, 3] = 5.0  # surest, but its label is not known
    int8 = logits([0, 2, 3, 0])
    found = answer_changes(fp32, int8, np.array([0, 1, 1, -1]), name=lambda row: f"{row}.jpg")
    assert (found.images, found.changed) == (4, 3)
    assert [each.image for each in found.listed] == ["1.jpg", "3.jpg", "2.jpg"]
    first = found.listed[0]
    assert (first.row, first.label, first.fp32, first.int8) == (1, 1, 1, 2)
    assert first.fp32_confidence == pytest.approx(np.exp(2) / (np.exp(2) + 3))
    assert found.listed[1].label is None
    assert [(row.number, row.images, row.fp32_correct, row.int8_correct) for row in found.classes] == [
        (1, 2, 1, 0)
    ]


def test_the_shift_of_confidence_is_that_of_the_best_class_of_fp32():
    fp32, int8 = logits([0, 1]), logits([0, 1], height=1.0)
    shift = answer_changes(fp32, int8, np.array([-1, -1])).confidence
    before, after = np.exp(2) / (np.exp(2) + 3), np.exp(1) / (np.exp(1) + 3)
    assert shift.fp32_mean == pytest.approx(before)
    assert shift.mean == pytest.approx(after - before)
    assert shift.mean_absolute == pytest.approx(before - after)
    assert sum(shift.counts) == 2
    assert shift.counts[0] == 2  # both at the lower end


def test_long_lists_are_cut():
    count = 4 * MOST_IMAGES
    labels = np.arange(count)
    fp32 = logits(labels, classes=count, height=9.0)
    int8 = np.roll(fp32, 1, axis=1)
    found = answer_changes(fp32, int8, labels)
    assert found.changed == count
    assert len(found.listed) == MOST_IMAGES
    assert len(found.classes) == MOST_CLASSES
