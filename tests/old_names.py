"""Names of the first dialect, none of which may come back; each has a standard word instead.

Everyday words that were also names (`found`, `share`, `written`) are not here: a test cannot tell
them from prose.
"""


def _words(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(texts).split())


IDENTIFIERS = _words(
    # configuration keys
    """
    chunks_per_row frames_per_chunk importance_limit keep_right key_variable kl_coefficient kl_in
    most_abstentions overlong_free packing_rows skipped_steps_allowed tokens_per_row trace_decay
    value_coefficient
    """,
    # configuration classes and functions
    """
    PolicyConfig RLConfig command_line expanded_paths require_vocabulary shown_name shown_number
    shown_path unknown_key_message
    """,
    # models and kernels
    """
    CACHE_LETTERS LowRankKernel LowRankTree adaptor_outputs attention_blocks attention_cached
    attention_packed attention_paged audio_slot audio_slots_point_at cache_slots contract_each
    expanded_anew fold_layer fold_low_rank head_kernel initial_low_rank is_low_rank low_rank_paths
    low_rank_tree merge_unstacked merged_block project_together rotary_angles segments_meet
    slot_letters takes_pages takes_prefixes visible_frames with_low_rank
    """,
    # training
    """
    FROZEN_LORA HELD_OUT_LOSS HeldOut ModelDefinition POLICY_STAGE StageKind StageRun StageStart
    StopSignal adapters_before drop_steps_after loss_term_sums policy_parameters
    after_stage auxiliary_sums checkpoint_wait_share claim_run_folder data_wait_share
    describe_stage first_wait_s initial_parameters is_free_to_change keeps_reference learnt_from
    learnt_tokens make_evaluation_step next_token_sums nothing_to_learn read_shape
    require_same_run save_model_of save_shape skipped_in_a_row skipped_in_row start_stage
    """,
    # reinforcement learning and the judge
    """
    AskAll Hearing ModelJudge ask_ahead asked_first engine_mismatch hear_prompt judge_facts
    own_pass pass_figures place_rewards planted_comparisons remove_what_killed_processes_left
    require_answer reward_of roll_out rollout_figures run_policy_stage since_it_wrote
    since_the_start token_advantages token_statistics truncated_importance server_key
    """,
    # generation and evaluation
    """
    MOST_STOP_TOKENS answer_of_a_server answered_before bar_figures engine_for figure_names
    figures_of letter_of_answer marked_answers number_of_answer penalise_counts put_caches
    scored_before whole_slots without_markup writes_only writing_mesh written_size
    """,
    # data, audio and text
    """
    AIMED_HZ BYTE_OF_SYMBOL CheckRecord Labeller LaidOut NOT_SILENT ReadAudio as_dialogue
    check_unread_sound clips_encoded count_checked defect_kind laying_out lay_out
    quiet_decoder take_existing through_channel without_lead_in
    """,
    # hub, storage and parallel
    """
    FolderConfig HeldFile LocalShards MergedReader ParameterWriter PlannedTensor StoredParameter
    StoredReader atomic_folder block_of checkpoint_adapter fresh_adaptor fresh_weights gather_json
    has_mark hold_file host_matrices hugging_face_config is_output_of is_said_twice
    learn_merges lora_matrices mark_output mesh_in_use naming_record new_folder of_project
    pod_chips raise_mistakes raise_problems read_folder_config read_weights_adapter row_parts
    told_by_first weights_adapter
    """,
    # planning
    """
    ATTENTION_SHARES LINK_SHARES PRODUCT_SHARES PolicyPlan StepParts adapter_of_run
    describe_machine_without_tpu make_plan most_slots plan_job plan_policy policy_as_text
    scheduled_products serving_as_text shard_bytes step_parts topology_devices with_initial_shape
    """,
    # examples
    """
    Booth alike_voice answered_two_turns draw_manners draw_spliced likeness made_up_sums
    may_be_chance overdone quickstart_manners recalled_words splicing write_manners_data
    """,
)

# Keys and attributes that are ordinary words, by the section that had them.
DOTTED = _words(
    """
    data.rows judge.levels judge.most_abstentions judge.spread judge.table objective.policy
    policy.baseline policy.discount rl.judge rl.policy rl.rollout rollout.prompts rollout.samples
    stage.rl stages.auxiliary
    """
)

# Of `stepaudio_jax`.
MODULES = _words(
    """
    audio.completeness audio.mpeg audio.quiet audio.spectrogram config.command_line
    config.parallel config.repetition config.resolve config.rl corpus data.assembly data.check
    data.foreign_forms data.pipeline data.preparation data.schema evaluation.markup
    evaluation.report generation.answering generation.jobs generation.layout generation.listening
    generation.writing hub.fresh_weights hub.inventory hub.new_folder hub.pipeline hub.read_weights
    models.attention_blocks models.attention_cached models.attention_packed models.low_rank
    models.stack models.unstacked parallel.blocks planning.effort planning.page planning.policy
    planning.program planning.serving quickstart recognition rl.aggregation rl.comparison
    rl.endpoint rl.fence rl.hearing rl.iteration rl.layout rl.learning rl.loop rl.objective
    rl.passes rl.update rl.watch storage.marks text.laying_out training.auxiliary
    training.held_out training.loop training.meter training.saved_model training.stage_kind
    training.start training.step training.stopping
    """
)
