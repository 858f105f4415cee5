"""How far a run is, and its loss scale: all that it needs to resume, besides weights and moments."""

from dataclasses import dataclass

from src.common.settings import TrainingConfig


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
    """

    step: int
    applied_steps: int
    loss_scale: LossScale
