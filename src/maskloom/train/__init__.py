"""From a configuration to a trained model. Read in this order:

    loop         `train` leads a run from its start to its exit code; `loop`: batch, step, and what is due
    step         `train_step`: where a batch becomes a loss, and a loss becomes new weights; gives a `StepResult`
    trainer      `Trainer`: the state of a run on one rank
    setup        what makes a run ready: config -> data plan -> model -> engine -> state
    due          what is due after a step: log, evaluate, save
    refusal      which steps are refused, and which data is skipped for it
    recovery     roll back, and say what is not finite

    batches      rows to micro-batches, ready ahead of the step
    skipped      blocks of bad data that were skipped
    evaluation   held-out loss; encoder_probe: labels read off the encoder's vectors
    held_out     the losses of all evaluations: which is the best, and whether the run ends early
    tally        sums since the last logged line
    timing       where the time goes: traffic, own time, slow ranks, time left
    metrics      the logged lines: TensorBoard, metrics.jsonl, the terminal

    run_dir      the run's folder and its status; run_lock: one run in a folder; resume: which settings may change
    engine/      all that knows DeepSpeed, behind `class Engine`
    checkpoint/  save, verify, find, load, fork
    rank/        what keeps a rank honest: stopping (the way of a SIGTERM), hanging, logs

`python -m maskloom.train CONFIG` (`__main__`) is what launchers start, once for each rank.
"""
