"""How far a run is, and its loss scale: all that it needs to resume, besides weights and moments."""

from dataclasses import dataclass

from src.common.settings import TrainingConfig

MAX_SKIPPED_AT_SCALE_1 = 20


@dataclass
class LossScale:
    """Dynamic loss scale: it grows while gradients stay finite and shrinks when they overflow.

    Args:
        value: The scale.
        clean_steps: Steps without overflow since the scale last changed.
    """

    value: float
    clean_steps: int = 0

    def update(self, finite: bool, config: TrainingConfig) -> None:
        """Update the scale after a step.

        Args:
            finite: The step's gradients were finite.
            config: Whether the scale is dynamic, and after how many clean steps it doubles.
        """
        if not config.dynamic_loss_scale:
            return
        if not finite:
            self.value, self.clean_steps = max(1.0, self.value / 2), 0
        elif self.clean_steps + 1 == config.loss_scale_window:
            self.value, self.clean_steps = self.value * 2, 0
        else:
            self.clean_steps += 1


@dataclass
class Progress:
    """Position of a run.

    Args:
        step: Optimizer steps that are done.
        applied_steps: Optimizer steps that updated the weights; overflow skips the others.
        loss_scale: The loss scale for the next step.
        skipped_in_row: Steps since the last one that updated the weights. A resumed run counts anew.
        skipped_at_scale_1: Those of them that had a loss scale of at most 1.
    """

    step: int
    applied_steps: int
    loss_scale: LossScale
    skipped_in_row: int = 0
    skipped_at_scale_1: int = 0

    def update(self, finite: bool, config: TrainingConfig) -> None:
        """Count a step.

        Args:
            finite: The step's gradients were finite, and it updated the weights.
            config: The rules of the loss scale.
        """
        self.step += 1
        self.applied_steps += finite
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        self.skipped_at_scale_1 = 0 if finite else self.skipped_at_scale_1 + (self.loss_scale.value <= 1)
        self.loss_scale.update(finite, config)

    def is_stuck(self, config: TrainingConfig) -> bool:
        """Whether so many steps in a row overflowed that no later one can be expected to update the weights."""
        most = min(config.max_skipped_steps, MAX_SKIPPED_AT_SCALE_1)
        return self.skipped_in_row >= config.max_skipped_steps or self.skipped_at_scale_1 >= most
