from PIL import Image

from benchmarks.qat_study import halves
from mobileone_q.data.sources import ImageFolder


def write_image(path):
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)


def test_halves_evaluate_every_image_once_and_never_train_on_it(tmp_path):
    for name in ("0", "1"):
        write_image(tmp_path / "calib" / f"n{name}" / "a.png")
    for k in range(6):
        write_image(tmp_path / "val" / f"n{k}" / "a.png")
    (tmp_path / "classes.txt").write_text("\n".join(f"n{k}" for k in range(10)))
    evaluated = []
    for data, eval_data in halves(tmp_path / "calib", tmp_path / "val", tmp_path / "folds"):
        trained, kept = ImageFolder(data), ImageFolder(eval_data)
        assert len(trained) == 2 + 3
        assert {trained.label(k) for k in range(len(trained))} == {-1}
        seen = {path.resolve() for path in trained.paths}
        assert not seen & {path.resolve() for path in kept.paths}
        evaluated += [(kept.identity(k), kept.label(k)) for k in range(len(kept))]
    assert sorted(evaluated) == [(f"n{k}/a.png", k) for k in range(6)]
