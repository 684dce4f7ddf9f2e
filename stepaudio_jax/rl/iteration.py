"""One step of a stage that learns from rewards: what is written and what it is worth, then what is learnt from it."""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.config import Config, StageConfig
from stepaudio_jax.generation import Engine, load_model
from stepaudio_jax.generation.layout import whole_slots, writing_mesh
from stepaudio_jax.models import takes_prefixes
from stepaudio_jax.parallel import BatchPlacement
from stepaudio_jax.rl.endpoint import Endpoint
from stepaudio_jax.rl.hearing import Hearing
from stepaudio_jax.rl.judge import Judge
from stepaudio_jax.rl.judge_prompt import JudgePrompt
from stepaudio_jax.rl.layout import Layout, RolloutBatch
from stepaudio_jax.rl.learning import Advantages, Passed, loss_weights, token_advantages
from stepaudio_jax.rl.model_judge import ModelJudge
from stepaudio_jax.rl.objective import KLController
from stepaudio_jax.rl.prompts import PromptStream
from stepaudio_jax.rl.rewards import Reward, Rewards
from stepaudio_jax.rl.rollouts import Rollout, roll_out
from stepaudio_jax.rl.update import Changed, Learning, PolicyUpdate, policy_parameters, reference_parameters
from stepaudio_jax.rl.watch import pass_figures, rollout_figures
from stepaudio_jax.training.stage_kind import StageRun
from stepaudio_jax.training.start import StageStart, keeps_reference
from stepaudio_jax.training.step import TrainState, updates_made


@dataclasses.dataclass(frozen=True)
class _Share:
    """The rollouts of one update: which of the step's they are, and where they lie in rows."""

    chosen: slice
    layout: Layout
    batches: list[RolloutBatch]  # on the mesh
    passed: Passed


class Iteration:
    """A step's work, with what is kept from step to step: the engine, compiled programs, the judge."""

    def __init__(self, run: StageRun, start: StageStart, state: TrainState):
        config, model, tokenizer, mesh = run.config, run.model, run.tokenizer, run.mesh
        self._stage, self._tokenizer, self._definition = run.stage, tokenizer, start.definition
        self._seed = config.seed + run.index
        self._shared = takes_prefixes(config.compute)
        rl = self._stage.rl
        writing = writing_mesh(model, tensor=rl.rollout.tensor, slices=config.mesh.slices)
        new_tokens = rl.rollout.max_new_tokens
        self._rewards = Rewards(rl, make_judge(config, self._stage))
        self._stream = PromptStream(
            self._stage.data,
            tokenizer,
            model,
            seed=self._seed,
            new_tokens=new_tokens,
            validate=self._rewards.require,
        )
        self._hearing = Hearing(model, config.compute, self._stage.data, mesh)
        self._update = PolicyUpdate(start.definition, rl, start.optimizer, start.shardings)
        self._place = BatchPlacement(self._stage.data, config.compute.rules, mesh)
        self._same_kernels = "decoder" in state.frozen
        self._engine = Engine(
            model,
            start.definition.with_lora(policy_parameters(state)),
            tokenizer,
            compute=config.compute,
            slots=whole_slots(rl.rollout.slots, config.compute.rules, writing),
            slot_tokens=min(self._stage.data.tokens_per_row, model.decoder.max_positions),
            cache_dtype=rl.rollout.cache_dtype or None,
            mesh=writing,
        )

    def write(self, state: TrainState, step: int) -> tuple[list[Rollout], list[Reward], dict[str, float]]:
        """The rollouts of a step, those of a prompt side by side, their rewards, and how long each took.

        Raises:
            DataError: a record cannot be used.
            JudgeError: the judge abstained too often.
        """
        rollout = self._stage.rl.rollout
        began, encoded = time.perf_counter(), self._hearing.encoded
        parameters = self._definition.with_lora(policy_parameters(state))
        asked = self._stream.of_step(step - 1, rollout.prompts)
        records, prompts = [one.record for one in asked], [one.prompt for one in asked]
        self._features = self._hearing.features(parameters, prompts)
        prompts = self._hearing.heard(parameters, prompts, self._features)
        heard = time.perf_counter()
        self._engine.set_parameters(parameters, same_kernels=self._same_kernels)
        del parameters
        written: dict[int, Rollout] = {}
        seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
        for number, one in roll_out(self._engine, prompts, records, rollout, self._tokenizer, seed):
            written[number] = one
            self._rewards.ask_ahead(one)
        rollouts = [written[number] for number in sorted(written)]
        ended = time.perf_counter()
        rewards = self._rewards(rollouts)
        judged = time.perf_counter()
        seconds = {"seconds/hear": heard - began, "seconds/rollout": ended - heard, "seconds/reward": judged - ended}
        counts = {"clips_encoded": self._hearing.encoded - encoded, "skipped_records": sum(one.skipped for one in asked)}
        return rollouts, rewards, seconds | {name: float(count) for name, count in counts.items()}

    def close(self) -> None:
        """Lets the judge go."""
        self._rewards.close()

    def learn(
        self, state: TrainState, rollouts: Sequence[Rollout], rewards: Sequence[Reward], controller: KLController
    ) -> tuple[TrainState, dict[str, float]]:
        """The updates of a step, and their figures; the given state is used up."""
        policy, began = self._stage.rl.policy, time.perf_counter()
        moved = updates_made(state) > 0  # else the policy still is the reference
        described = rollout_figures(rollouts, rewards, self._tokenizer)  # before the state is used up: what fails here is saved
        size = self._stage.rl.rollout.prompts // policy.minibatches * self._stage.rl.rollout.samples
        starts = range(0, len(rollouts), size)
        shares = [self._pass(state, rollouts, slice(first, first + size), moved) for first in starts]
        passed = Passed(*(list(itertools.chain.from_iterable(found)) for found in zip(*map(_lists, shares), strict=True)))
        found = token_advantages(rollouts, rewards, passed, policy, beta=controller.coefficient)
        learning = [self._learning(rollouts, share, found) for share in shares]
        ready = time.perf_counter()
        updates, changed = [], Changed(since_it_wrote=np.bool_(False), since_the_start=np.bool_(moved))
        for _, (number, share) in itertools.product(range(policy.epochs), enumerate(shares)):
            parts = list(zip(share.batches, learning[number], strict=True))
            state, sums, logprobs = self._update(state, parts, beta=controller.coefficient, changed=changed)
            updates.append(sums)
            if not (sums["skipped_steps"] or sums["nothing_to_learn"]):
                changed = Changed(since_it_wrote=np.bool_(True), since_the_start=np.bool_(True))
        if not policy.own_pass:  # the only update has passed over the rollouts
            old = shares[0].layout.gather(logprobs)
            passed = Passed(old, passed.reference if moved and keeps_reference(self._stage) else old, passed.values)
        figures = {name: float(np.mean([sums[name] for sums in updates])) for name in updates[0]}
        figures |= described | pass_figures(rollouts, passed, found)
        if not keeps_reference(self._stage):
            figures = {name: value for name, value in figures.items() if name.partition("/")[0] != "reply_kl"}
        figures |= {"learnt_from": float(found.valid.mean()), "kl_coefficient": controller.coefficient}
        if keeps_reference(self._stage) and changed.since_it_wrote:  # a step that changed nothing leaves beta as well
            controller.update(figures["reply_kl"], len(rollouts))
        return state, figures | {"seconds/passes": ready - began, "seconds/update": time.perf_counter() - ready}

    def _pass(self, state: TrainState, rollouts: Sequence[Rollout], chosen: slice, moved: bool) -> _Share:
        """Puts the rollouts of one update in rows, with what policy and reference say of them (0 where the update says it).

        `moved` is whether the policy has changed since the stage began.
        """
        layout = Layout(rollouts[chosen], self._stage.data, shared=self._shared)
        whole = layout.batch(self._features, self._tokenizer.special.pad)
        batches, rows = [], []
        for batch in self._on_mesh(whole):
            old = values = np.zeros(batch.tokens.shape, np.float32)
            if self._stage.rl.policy.own_pass:
                old, values = self._update.statistics(policy_parameters(state), batch)
            reference = old
            if keeps_reference(self._stage) and moved:
                reference, _ = self._update.statistics(reference_parameters(state), batch)
            batches.append(batch)
            rows.append([np.asarray(array) for array in (old, reference, values)])
        passed = Passed(*(layout.gather(np.concatenate(parts)) for parts in zip(*rows, strict=True)))
        return _Share(chosen, layout, batches, passed)

    def _learning(self, rollouts: Sequence[Rollout], share: _Share, found: Advantages) -> list[Learning]:
        """What is learnt from each of a share's batches."""
        own = rollouts[share.chosen]
        whole = Learning(
            weights=share.layout.spread(loss_weights(own, found.valid[share.chosen], self._stage.rl.policy)),
            advantages=share.layout.spread(found.advantages[share.chosen]),
            old_logprobs=share.layout.spread(share.passed.old),
            sampler_logprobs=share.layout.spread([rollout.sampler_logprobs for rollout in own]),
            reference_logprobs=share.layout.spread(share.passed.reference),
            returns=share.layout.spread(found.returns[share.chosen]),
            old_values=share.layout.spread(share.passed.values),
        )
        return self._on_mesh(whole)

    def _on_mesh(self, whole: Any) -> list[Any]:
        """A tree of host arrays [rows, ..] as trees of `data.rows` rows each, on the mesh."""
        size = self._stage.data.rows
        starts = range(0, jax.tree.leaves(whole)[0].shape[0], size)
        own = np.array(self._place.rows)
        return [self._place(jax.tree.map(lambda array, at=start + own: array[at], whole)) for start in starts]


def make_judge(config: Config, stage: StageConfig) -> Judge | None:
    """The judge that a stage asks for, if any, on all devices if in this process; its answers are kept in the run folder."""
    asked = stage.rl.judge
    if asked.folder:
        mesh = writing_mesh(hub.read_model_config(asked.folder), slices=config.mesh.slices)
        loaded = load_model(asked.folder, config.compute.dtype, mesh=mesh, writes_only=True)
        model = ModelJudge(loaded, slots=asked.slots, max_tokens=asked.max_tokens)
        name: str = model.name
        ask: Any = model
    elif asked.url:
        endpoint = Endpoint(
            url=asked.url,
            model=asked.model,
            key_variable=asked.key_variable,
            max_tokens=asked.max_tokens,
            timeout_s=asked.timeout_s,
            retries=asked.retries,
        )
        name, ask = endpoint.name, endpoint.ask
    else:
        return None
    return Judge(
        name,
        ask,
        JudgePrompt(asked.prompt or None, levels=asked.levels),
        together=bool(asked.folder),
        cache=pathlib.Path(config.run_dir) / f"judge_{stage.name}.jsonl",
        concurrency=asked.concurrency,
        most_abstentions=asked.most_abstentions,
    )


def _lists(share: _Share) -> tuple[Any, ...]:
    return share.passed.old, share.passed.reference, share.passed.values
