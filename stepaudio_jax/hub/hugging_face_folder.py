"""A Hugging Face folder of weights: its parts, and whether its tensors are those that its config asks for."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AdaptorConfig, ModelConfig, Part
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.hugging_face_config import FolderConfig, read_folder_config
from stepaudio_jax.hub.safetensors_reader import DTYPES, StoredTensor, read_folder
from stepaudio_jax.hub.tensor_names import Block, Path, Tensor, tensors

_ADAPTOR_WIDTH_TENSOR = "adapter.linear1.weight"  # [ffn, encoder hidden]


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceFolder:
    """An opened folder; only its config and the headers of its shards have been read."""

    path: pathlib.Path
    config: FolderConfig
    stored: dict[str, StoredTensor]

    @staticmethod
    def open(path: pathlib.Path) -> "HuggingFaceFolder":
        """Opens a folder.

        Raises:
            CheckpointError: it is no folder, or its config or shards cannot be read.
        """
        return HuggingFaceFolder(path, read_folder_config(path), read_folder(path))

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.config.naming.parts

    @property
    def adaptor(self) -> AdaptorConfig:
        """The adaptor's shape, read from its tensors (no config field holds it)."""
        tensor = self.stored.get(_ADAPTOR_WIDTH_TENSOR)
        if tensor is None or not all(tensor.shape[:1]):
            return AdaptorConfig()  # `problems` tells that the tensor is missing or misshapen
        return AdaptorConfig(ffn=tensor.shape[0])

    @property
    def model(self) -> ModelConfig:
        """The model's shape, with default values for the parts that this folder lacks."""
        default = ModelConfig()
        return ModelConfig(
            encoder=self.config.encoder or default.encoder,
            adaptor=self.adaptor,
            decoder=self.config.decoder or default.decoder,
            length_convention=self.config.length_convention,
        )

    def require_parts(self, parts: Sequence[Part]) -> None:
        """Refuses a part that this family of checkpoints does not hold."""
        lacking = [part for part in parts if part not in self.parts]
        if lacking:
            raise CheckpointError(
                f"{self.path} ({self.config.naming.family}) holds {', '.join(self.parts)} only, not {', '.join(lacking)}"
            )

    def tensors(self, parts: Sequence[Part]) -> list[Tensor]:
        """The tensors that the config asks for, of the given parts."""
        return tensors(self.model, self.config.naming, parts)

    def problems(self, parts: Sequence[Part]) -> list[str]:
        """What is wrong with the tensors of the given parts: missing, misshapen, of an unknown dtype, unexpected."""
        expected = {tensor.name: tensor for tensor in self.tensors(parts)}
        found = [f"missing {name} {list(tensor.shape)}" for name, tensor in expected.items() if name not in self.stored]
        for name, stored in self.stored.items():
            if name in expected and stored.shape != expected[name].shape:
                found.append(f"misshapen {name}: {list(stored.shape)}, expected {list(expected[name].shape)}")
            elif name in expected and stored.dtype_code not in DTYPES:
                found.append(f"{name} is {stored.dtype_code}, not one of {', '.join(DTYPES)}")
            elif name not in expected and self._is_unexpected(name, parts):
                tied = " (config.json says tie_word_embeddings)" if name == "lm_head.weight" else ""
                found.append(f"unexpected {name} {list(stored.shape)}{tied}")
        return found

    def check(self, parts: Sequence[Part]) -> None:
        """Raises one CheckpointError that lists every problem of the given parts."""
        self.require_parts(parts)
        raise_problems(self.path, self.problems(parts))

    def parameter_dtypes(self, parts: Sequence[Part]) -> dict[Path, np.dtype[Any]]:
        """The dtype of every parameter of the given parts.

        Raises:
            CheckpointError: the layers of a parameter differ in it, and they are one array here.
        """
        found: dict[Path, dict[str, str]] = {}
        for tensor in self.tensors(parts):
            found.setdefault(tensor.path, {}).setdefault(self.stored[tensor.name].dtype_code, tensor.name)
        mixed = [names for names in found.values() if len(names) > 1]
        if mixed:
            listed = "; ".join(", ".join(f"{name} is {code}" for code, name in names.items()) for names in mixed)
            raise CheckpointError(f"{self.path}: layers differ in dtype; say which one is wanted: {listed}")
        return {path: DTYPES[code] for path, names in found.items() for code in names}

    def read(self, tensor: Tensor, block: Block) -> NDArray[Any]:
        """A block of a tensor, as the parameter holds it, in the file's dtype."""
        return tensor.to_parameter(self.stored[tensor.name].read(block.rows), block)

    def _is_unexpected(self, name: str, parts: Sequence[Part]) -> bool:
        naming = self.config.naming
        part = naming.part_of(name)
        return part in parts or (part is None and not name.startswith(naming.foreign))


def raise_problems(path: pathlib.Path, problems: Sequence[str]) -> None:
    """One error that lists every problem; nothing where there is none."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CheckpointError(f"{path}: {count}; copy or convert the folder again: {'; '.join(problems)}")
