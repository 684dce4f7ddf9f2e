"""Opens Hugging Face folders, and checks that their tensors fit their configuration."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AdaptorConfig, ModelConfig, Part
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.hf_config import HFConfig, read_hf_config
from stepaudio_jax.hub.safetensors import SAFETENSORS_DTYPES, StoredTensor, read_tensor_headers
from stepaudio_jax.hub.tensor_map import (
    BLOCK_ELEMENTS,
    Block,
    ParamPath,
    Tensor,
    is_derived_buffer,
    tensors,
)
from stepaudio_jax.storage import Path, recognize_folder

_ADAPTOR_WIDTH_TENSOR = "adapter.linear1.weight"  # [ffn, encoder hidden]
_EMBEDDING, _LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TIED_HINT = " (where the embedding is the head too, config.json must say tie_word_embeddings)"
_WRAPPERS = (
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "_fsdp_wrapped_module.",
    "model._orig_mod.",
)
_MAX_PROBLEMS = 20  # in one message


@dataclasses.dataclass(frozen=True, eq=False)
class HFFolder:
    """A folder of which the configuration and the headers of the shards have been read.

    Attributes:
        path: of the folder.
        config: from its `config.json`.
        stored: its tensors by name.
    """

    path: Path
    config: HFConfig
    stored: dict[str, StoredTensor]

    @staticmethod
    def open(path: Path) -> "HFFolder":
        """Opens a folder.

        Raises:
            CheckpointError: it is no folder, or its config or shards cannot be read.
        """
        config = read_hf_config(path)
        _check_no_adapter(path)
        stored = read_tensor_headers(path)
        if (
            config.decoder is not None
            and config.decoder.tied_embeddings
            and _EMBEDDING not in stored
            and _LM_HEAD in stored
        ):
            # safetensors' own save_model keeps one of the two names.
            stored[_EMBEDDING] = stored.pop(_LM_HEAD)
        return HFFolder(path, config, stored)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.config.naming.parts

    @property
    def adaptor(self) -> AdaptorConfig:
        """Returns the adaptor's shape, read from its tensors; no config field has it."""
        tensor = self.stored.get(_ADAPTOR_WIDTH_TENSOR)
        if tensor is None or not all(tensor.shape[:1]):
            return AdaptorConfig()  # `problems` reports the missing or misshapen tensor
        return AdaptorConfig(ffn=tensor.shape[0])

    @property
    def model(self) -> ModelConfig:
        """Returns the model's shape, with default values for parts that this folder lacks."""
        default = ModelConfig()
        return ModelConfig(
            encoder=self.config.encoder or default.encoder,
            adaptor=self.adaptor,
            decoder=self.config.decoder or default.decoder,
            length_convention=self.config.length_convention,
        )

    def check_parts(self, parts: Sequence[Part]) -> None:
        """Checks that this family of checkpoints has all of the parts."""
        lacking = [part for part in parts if part not in self.parts]
        if lacking:
            raise CheckpointError(
                f"{self.path} ({self.config.naming.family}) holds {', '.join(self.parts)} only, not"
                f" {', '.join(lacking)}"
            )

    def tensors(self, parts: Sequence[Part]) -> list[Tensor]:
        """Returns the tensors of some parts that the configuration asks for."""
        return tensors(self.model, self.config.naming, parts)

    def problems(self, parts: Sequence[Part]) -> list[str]:
        """Returns what is wrong with the tensors of some parts.

        They are missing, misshapen, of an unknown dtype, unexpected, or tied and unequal.
        """
        return self._tensor_problems(parts) or self._lm_head_problems(parts)

    @property
    def skipped_tensors(self) -> list[str]:
        """Returns the names of tensors that are not read, since they follow from the rest."""
        return [name for name, stored in self.stored.items() if self._is_skipped(name, stored)]

    def check(self, parts: Sequence[Part]) -> None:
        """Checks the tensors of some parts; a CheckpointError lists all problems."""
        self.check_parts(parts)
        raise_if_problems(self.path, self._tensor_problems(parts))
        for problem in self._lm_head_problems(parts):
            raise CheckpointError(f"{self.path}: {problem}")

    def _tensor_problems(self, parts: Sequence[Part]) -> list[str]:
        expected = {tensor.name: tensor for tensor in self.tensors(parts)}
        problems = [
            f"missing {name} {list(tensor.shape)}{_TIED_HINT if name == _LM_HEAD else ''}"
            for name, tensor in expected.items()
            if name not in self.stored
        ]
        for name, stored in self.stored.items():
            if name in expected and stored.shape != expected[name].shape:
                problems.append(
                    f"misshapen {name}: {list(stored.shape)}, expected {list(expected[name].shape)}"
                )
            elif name in expected and stored.dtype_code not in SAFETENSORS_DTYPES:
                problems.append(
                    f"{name} is {stored.dtype_code}, not one of {', '.join(SAFETENSORS_DTYPES)}"
                )
            elif (
                name not in expected
                and self._is_unexpected(name, parts)
                and not self._is_skipped(name, stored)
            ):
                problems.append(f"unexpected {name} {list(stored.shape)}")
        return problems

    def _lm_head_problems(self, parts: Sequence[Part]) -> list[str]:
        """Returns the problem of an `lm_head` that differs from the embedding it is tied to.

        Both are read.
        """
        if (
            "decoder" not in parts
            or not self._is_tied
            or _LM_HEAD not in self.stored
            or _EMBEDDING not in self.stored
        ):
            return []
        difference = first_difference(self.stored[_LM_HEAD], self.stored[_EMBEDDING])
        if difference is None:
            return []
        return [
            f"{_LM_HEAD} differs from {_EMBEDDING} ({difference}), and config.json says"
            " tie_word_embeddings, that they are the same: set tie_word_embeddings to false in"
            f" config.json (wherever it is there), or remove {_LM_HEAD}"
        ]

    @property
    def _is_tied(self) -> bool:
        return self.config.decoder is not None and self.config.decoder.tied_embeddings

    def _is_skipped(self, name: str, stored: StoredTensor) -> bool:
        return is_derived_buffer(name, stored.shape) or (name == _LM_HEAD and self._is_tied)

    def parameter_dtypes(self, parts: Sequence[Part]) -> dict[ParamPath, np.dtype[Any]]:
        """Returns the dtype of every parameter of some parts.

        Raises:
            CheckpointError: the layers of a parameter, which are one array here, differ in dtype.
        """
        codes_of: dict[ParamPath, dict[str, str]] = {}  # code -> the first tensor that has it
        for tensor in self.tensors(parts):
            codes_of.setdefault(tensor.path, {}).setdefault(
                self.stored[tensor.name].dtype_code, tensor.name
            )
        mixed = [codes for codes in codes_of.values() if len(codes) > 1]
        if mixed:
            listed = "; ".join(
                ", ".join(f"{name} is {code}" for code, name in codes.items()) for codes in mixed
            )
            raise CheckpointError(
                f"{self.path}: layers differ in dtype; say which one is wanted: {listed}"
            )
        return {
            path: SAFETENSORS_DTYPES[code] for path, codes in codes_of.items() for code in codes
        }

    def read(self, tensor: Tensor, block: Block) -> NDArray[Any]:
        """Reads a block of a tensor, in the parameter's order of axes and the file's dtype."""
        return tensor.to_parameter(self.stored[tensor.name].read(block.rows), block)

    def _is_unexpected(self, name: str, parts: Sequence[Part]) -> bool:
        naming = self.config.naming
        part = naming.part_of(name)
        return part in parts or (part is None and not name.startswith(naming.foreign))


def raise_if_problems(path: Path, problems: Sequence[str]) -> None:
    """Raises a CheckpointError that lists the problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        shown = list(problems[:_MAX_PROBLEMS])
        if len(problems) > len(shown):
            shown.append(
                f"and {len(problems) - len(shown)} more, which"
                f" `python -m tools.convert_weights inspect {path}` lists"
            )
        wrapper = next(
            (
                prefix
                for prefix in _WRAPPERS
                if any(f" {prefix}" in problem for problem in problems)
            ),
            None,
        )
        remedy = "copy or convert the folder again"
        if wrapper is not None:
            remedy = (
                f"its names begin with {wrapper!r}, as a wrapped model's do: save the model inside"
                " the wrapper again"
            )
        raise CheckpointError(f"{path}: {count}; {remedy}: {'; '.join(shown)}")


def first_difference(first: StoredTensor, second: StoredTensor) -> str | None:
    """Returns in words where two tensors differ; None if all of their values are equal.

    A few rows are read at a time.
    """
    if first.shape != second.shape:
        return f"{list(first.shape)} and {list(second.shape)}"
    for tensor in (first, second):
        if tensor.dtype_code not in SAFETENSORS_DTYPES:
            return f"one of them is {tensor.dtype_code}"
    rows = max(1, BLOCK_ELEMENTS // math.prod(first.shape[1:]))
    for start in range(0, first.shape[0], rows):
        left, right = (tensor.read(slice(start, start + rows)) for tensor in (first, second))
        if left.dtype == right.dtype and np.array_equal(left.view(np.uint8), right.view(np.uint8)):
            continue
        different = np.asarray(left, np.float64) != np.asarray(right, np.float64)
        if different.any():
            return f"first in row {start + int(np.argwhere(different)[0][0])}"
    return None


def _check_no_adapter(path: Path) -> None:
    """Checks that a folder has no PEFT adapter, which would be ignored silently."""
    if not (path / "adapter_config.json").is_file():
        return
    weights = [
        file.name
        for file in path.glob("*.safetensors")
        if not file.name.startswith(("adapter_model", "."))
    ]
    if weights:
        raise CheckpointError(
            f"{path} holds a model ({weights[0]}) and beside it a PEFT adapter"
            " (adapter_config.json): move the adapter to a folder of its own, and merge the two"
            " with `python -m tools.convert_weights import --adapter` if both are meant"
        )
    raise CheckpointError(f"{path} {recognize_folder(path, 'weights')}")
