"""The other side of `train_step`: the same model of transformers' parts, trained with torch.

It is trained as its users do: one dialogue a row, padded.
"""

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2AudioEncoderConfig, Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from benchmarks.compare import Step
from benchmarks.training_job import Job, Rows, draw_rows
from stepaudio_jax.audio.lengths import max_mel_frames
from stepaudio_jax.config import EncoderConfig, ModelConfig
from tests.qwen2 import qwen2_config

_IGNORE_INDEX = -100
_BETAS, _WEIGHT_DECAY = (0.9, 0.95), 0.1  # as in `OptimizerConfig`


def torch_step(job: Job) -> Step:
    """Returns a function that runs one training step and returns its loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = AudioLanguageModel(job.model, has_audio=job.data.audio_chunks_per_seq > 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-5, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=device.type == "cuda"
    )
    forward: Any = torch.compile(model) if job.compiled else model
    batch = {name: array.to(device) for name, array in padded_batch(draw_rows(job), job).items()}
    parts = [
        dict(zip(batch, part, strict=True))
        for part in zip(
            *(array.chunk(job.torch_micro_batches) for array in batch.values()), strict=True
        )
    ]
    autocast = job.compute.dtype == "bfloat16"

    def run() -> float:
        total = torch.zeros((), device=device)
        # Each part has as many tokens, so that the mean of their means is the batch's mean.
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = forward(**part) / len(parts)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    return run


class AudioLanguageModel(torch.nn.Module):
    """Qwen2-Audio's encoder (frozen), the adaptor, and Qwen2.

    Attention is torch's scaled_dot_product_attention.

    Args:
        config: the shape.
        has_audio: whether batches have sound; without, the model is the decoder alone.
    """

    def __init__(self, config: ModelConfig, *, has_audio: bool):
        super().__init__()
        self.decoder = Qwen2ForCausalLM(qwen2_config(config.decoder)).train()
        self.has_audio = has_audio
        if has_audio:
            width = config.encoder.hidden
            self.encoder = (
                Qwen2AudioEncoder(_qwen2_audio_config(config.encoder)).eval().requires_grad_(False)
            )
            self.conv = torch.nn.Conv1d(
                width, width, config.adaptor.kernel_size, stride=config.adaptor.stride, padding=1
            )
            self.up = torch.nn.Linear(width, config.adaptor.ffn)
            self.down = torch.nn.Linear(config.adaptor.ffn, config.decoder.hidden)

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, **audio_inputs: torch.Tensor
    ) -> torch.Tensor:
        """Returns the mean next-token loss; see `padded_batch` for the shapes."""
        embeddings = self.decoder.model.embed_tokens(tokens)
        if self.has_audio:
            with torch.no_grad():
                features = self.encoder(
                    audio_inputs["mel"], attention_mask=audio_inputs["frame_mask"]
                ).last_hidden_state
            hidden = F.gelu(self.conv(features.transpose(1, 2))).transpose(1, 2)
            audio = self.down(F.relu(self.up(hidden)))
            audio = audio[audio_inputs["output_mask"]].to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(audio_inputs["is_audio"][..., None], audio)
        logits = self.decoder(
            inputs_embeds=embeddings, attention_mask=audio_inputs.get("token_mask"), use_cache=False
        ).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORE_INDEX
        )


def padded_batch(rows: Rows, job: Job) -> dict[str, torch.Tensor]:
    """Returns a batch of one dialogue a row, padded to the longest.

    Clips are padded to the encoder's full length, as by the feature extractor: the encoder takes no
    other.

    tokens, targets: [dialogues, tokens] i64. With sound also token_mask, is_audio:
    [dialogues, tokens] bool; mel: [dialogues, 128, frames] f32; frame_mask:
    [dialogues, 1, 1, frames / 2] bool; output_mask: [dialogues, frames / 8] bool.
    """
    dialogues = list(itertools.chain.from_iterable(rows))
    shape = (len(dialogues), max(dialogue.tokens.size for dialogue in dialogues))
    tokens, targets = np.zeros(shape, np.int64), np.full(shape, _IGNORE_INDEX)
    token_mask, is_audio = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, dialogue in enumerate(dialogues):
        length = dialogue.tokens.size
        tokens[row, :length] = dialogue.tokens
        targets[row, :length] = np.where(dialogue.loss_weights > 0, dialogue.targets, _IGNORE_INDEX)
        token_mask[row, :length] = True
        is_audio[row, :length] = dialogue.audio_index >= 0
    batch: dict[str, np.ndarray] = {"tokens": tokens, "targets": targets}
    if job.data.audio_chunks_per_seq:
        frames = max_mel_frames(job.model.encoder.positions)
        mel = np.zeros((len(dialogues), job.model.encoder.mel_bins, frames), np.float32)
        frame_mask = np.zeros((len(dialogues), 1, 1, frames // 2), bool)
        output_mask = np.zeros((len(dialogues), frames // 8), bool)
        for row, dialogue in enumerate(dialogues):
            clip = dialogue.chunks[0].mel
            mel[row, :, : clip.shape[1]] = clip
            frame_mask[row, ..., : clip.shape[1] // 2] = True
            output_mask[row, : is_audio[row].sum()] = True
        batch |= {
            "token_mask": token_mask,
            "is_audio": is_audio,
            "mel": mel,
            "frame_mask": frame_mask,
            "output_mask": output_mask,
        }
    return {name: torch.tensor(array) for name, array in batch.items()}


def _qwen2_audio_config(encoder: EncoderConfig) -> Qwen2AudioEncoderConfig:
    return Qwen2AudioEncoderConfig(
        num_mel_bins=encoder.mel_bins,
        d_model=encoder.hidden,
        encoder_layers=encoder.layers,
        encoder_attention_heads=encoder.heads,
        encoder_ffn_dim=encoder.ffn,
        max_source_positions=encoder.positions,
    )
