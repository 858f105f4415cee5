"""The order of work in a pipeline of the explicit engine: one timetable, from which each stage takes its part.

With one virtual stage it is 1F1B (PipeDream-Flush, arXiv 2006.09503), with several it is interleaved 1F1B (arXiv
2104.04473, section 2.2). Time is cut into slots. What is computed in a slot crosses to the neighbour at its end, and is
used there in the next slot. So a stage keeps no result for later, and neighbours agree on every exchange. All exchanges
of a run have one order, by slot and edge, and each stage makes its own in this order. Therefore the first exchange that
is not made yet never waits for a later one, and the stages cannot block each other. MindSpore is not imported here.
"""

from collections import Counter
from dataclasses import dataclass

from src.pangu_alpha_config import RunConfig
from src.parallel.plan.plan import Plan


@dataclass(frozen=True)
class Work:
    """The forward or backward pass of a micro-batch through a chunk.

    Args:
        lap: Which of its stage's chunks it is.
        micro_batch: Number of the micro-batch.
    """

    lap: int
    micro_batch: int


@dataclass(frozen=True)
class Slot:
    """What a stage does in a slot: a forward pass, then a backward pass, then exchanges.

    Args:
        forward, backward: The passes; None for none.
        exchanges: Whether each exchange is with the next stage (or with the previous one), in order.
    """

    forward: Work | None
    backward: Work | None
    exchanges: tuple[bool, ...]


class Schedule:
    """The timetable of an optimizer step.

    Stage s of p makes its forward pass k in slot s + k, and its backward pass k in slot (v - 1) p + 2 (p - 1) - s + k.
    So before its first backward pass, it has made the warm-up of Megatron-LM, (v - 1) p + 2 (p - 1 - s) forward passes,
    and one more. With v = 1 the slots of forward passes alternate with those of backward passes. Then p - s forward
    passes are enough.

    Args:
        plan: How the run is spread. Its laps go around the stages.
        micro_batches: Micro-batches of a step; with virtual stages, a multiple of the stages.
    """

    def __init__(self, plan: Plan, micro_batches: int):
        self.plan, self.passes = plan, micro_batches * plan.virtual_stages
        stages, laps = plan.pipeline, plan.virtual_stages
        self._stride = 1 if laps > 1 else 2
        # Slot of the first backward pass, on the last stage. It follows the forward pass in the same slot, or before.
        self._turn = (stages - 1) + (laps - 1) * stages + self._stride - 1

    def forward(self, stage: int) -> dict[int, Work]:
        """Return the forward passes of a stage by their slots."""
        return {stage + self._stride * number: self._work(number) for number in range(self.passes)}

    def backward(self, stage: int) -> dict[int, Work]:
        """Return the backward passes of a stage by their slots."""
        last, begin = self.plan.virtual_stages - 1, self._first_backward(stage)
        works = map(self._work, range(self.passes))
        return {
            begin + self._stride * number: Work(last - work.lap, work.micro_batch) for number, work in enumerate(works)
        }

    def of_stage(self, stage: int) -> list[Slot]:
        """Return the slots of a stage in which it has something to do, in order."""
        forward, backward, edges = self.forward(stage), self.backward(stage), self._edges(stage)
        return [
            Slot(
                forward.get(slot),
                backward.get(slot),
                tuple(lower == stage for lower, crossed in edges.items() if slot in crossed),
            )
            for slot in sorted(set().union(forward, backward, *edges.values()))
        ]

    def exchanges(self, stage: int) -> int:
        """Return the number of exchanges of a stage with its neighbours in a step."""
        return sum(map(len, self._edges(stage).values()))

    def in_flight(self, stage: int) -> Counter[int]:
        """Return how many micro-batches of each lap a stage keeps before its first backward pass: never more later."""
        before = (self._first_backward(stage) - stage) // self._stride
        return Counter(self._work(number).lap for number in range(min(before + 1, self.passes)))

    def _first_backward(self, stage: int) -> int:
        return self._turn + self.plan.pipeline - 1 - stage

    def _work(self, number: int) -> Work:
        """Return a forward pass. Groups of as many micro-batches as stages go through all laps, one after the other."""
        stages = self.plan.pipeline
        group, place = divmod(number, stages * self.plan.virtual_stages)
        lap, within = divmod(place, stages)
        return Work(lap, group * stages + within)

    def _edges(self, stage: int) -> dict[int, set[int]]:
        """Return the slots of the exchanges with the next stage and with the previous one, by the lower stage."""
        edges = {stage, (stage - 1) % self.plan.pipeline}
        return {lower: self._crossed(lower) for lower in sorted(edges, key=lambda lower: (lower % 2, lower))}

    def _crossed(self, lower: int) -> set[int]:
        """Return the slots at whose ends something crosses between a stage and the next one of the ring."""
        upper = (lower + 1) % self.plan.pipeline
        ends = lower == self.plan.pipeline - 1  # nothing leaves the last chunk, nor the first one
        up = {slot for slot, work in self.forward(lower).items() if not ends or work.lap < self.plan.virtual_stages - 1}
        return up | {slot for slot, work in self.backward(upper).items() if not ends or work.lap > 0}


def in_flight(config: RunConfig, plan: Plan, stage: int) -> tuple[int, ...]:
    """Return how many micro-batches a stage keeps at most at a time, of each of its chunks.

    With zero_bubble_v all stages keep as many as the first stage of plain 1F1B (arXiv 2405.15362).
    """
    if plan.turns_back:
        return (min(plan.pipeline, config.micro_steps),) * plan.virtual_stages
    most = Schedule(plan, config.micro_steps).in_flight(stage)
    return tuple(most[lap] for lap in range(plan.virtual_stages))


def messages_to_stages(config: RunConfig, plan: Plan, stage: int) -> int:
    """Return how often a stage sends hidden states or their gradients to other stages in a step.

    The explicit engine sends zeros too, where only the neighbour has something to send.
    """
    if config.is_semi_auto:
        return config.micro_steps * sum(plan.sends(stage))
    return Schedule(plan, config.micro_steps).exchanges(stage) if plan.pipeline > 1 else 0
