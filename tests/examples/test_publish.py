"""A published model replaces an earlier model, and nothing else."""

import pytest

from examples.quickstart.publish import check_replaceable_model
from stepaudio_jax.errors import OutputError


def test_only_a_model_is_replaced(tmp_path):
    folder, notes, model = tmp_path / "folder", tmp_path / "notes.txt", tmp_path / "model"
    for path in (folder, model):
        path.mkdir()
    (folder / "thesis.txt").write_text("years")
    notes.write_text("mine\n")
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("")
    for output, inputs, message in (
        (folder, (), "holds no model that could be replaced"),
        (notes, (), "already exists"),
        (model, ("", str(folder / ".." / "model")), "is the input"),
    ):
        with pytest.raises(OutputError, match=message):
            check_replaceable_model(output, inputs)
    check_replaceable_model(model, (str(tmp_path / "nowhere"),))
    check_replaceable_model(tmp_path / "new" / "model")
