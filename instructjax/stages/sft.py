"""The supervised baseline (section 3.5, appendix C.1)."""

from __future__ import annotations

from instructjax.data import demonstrations
from instructjax.records import Demonstration
from instructjax.stages import language_model, selection
from instructjax.stages.stage import Stage, stage


@stage("sft", after=("pretrain",), uses=("demonstrations",))
def run(stage: Stage) -> None:
    """Fine-tunes GPT on demonstrations for `sft.epochs`, and keeps `sft.candidates` checkpoints for `selection`."""
    run, section = stage.run, stage.section
    records = run.records(Demonstration, "train")
    steps = stage.steps(records)
    _ = run.checkpoints("pretrain", section.init_from)  # refuses before the choice is forgotten
    if not run.is_finished(stage.name):
        selection.forget(run)
    language_model.train(
        stage,
        lambda: run.load_start("pretrain", section.init_from),
        lambda: demonstrations.batches(
            records,
            run.layout,
            steps=steps,
            prompt_weight=section.prompt_weight,
            mixture=run.mixture(Demonstration),
            **stage.batching(),
        ),
        steps=steps,
        held_out={"demonstration": run.validation_demonstrations(), "text": run.validation_text()},
        keep_steps=selection.candidates(stage.config, steps),
    )
