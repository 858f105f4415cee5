"""Pipeline parallel: the layers are cut into stages on different ranks, and micro-batches follow each other (1F1B).

A rank keeps only the input of a micro-batch in flight. The backward pass of a chunk computes its forward pass again
from it. src/parallel/plan/schedule.py has the order of work.
"""

from collections.abc import Callable, Iterable, Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from src.nn.optimizer import StepScalars
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.pangu_alpha_wrapcell import (
    ApplyGradients,
    ApplySums,
    Inputs,
    StepResult,
    add_to,
    token_weights,
    weighted_mean,
    zero_sums,
)
from src.parallel.explicit.collectives import AllReduce, NeighbourExchange
from src.parallel.mesh import Mesh
from src.parallel.plan.plan import Plan
from src.parallel.plan.schedule import Schedule, Work


def keep_chunk(model: PanguAlphaModel, plan: Plan, chunk: int) -> None:
    """Keep only the layers of a chunk in a model.

    The backbone of every chunk but the first takes hidden states of the previous chunk instead of ids. The backbone of
    every chunk but the last returns hidden states for the next chunk. The last chunk keeps the word table for the head.

    Args:
        model: A model that was built without data.
        plan: How the run is spread.
        chunk: Number of the chunk.
    """
    if plan.num_chunks == 1:
        return
    names = {id(parameter): parameter.name for parameter in model.get_parameters()}
    backbone = model.backbone
    backbone.blocks = nn.CellList([backbone.blocks[i] for i in plan.layers_of_chunk(chunk) if i < plan.num_layers - 1])
    is_last = chunk == plan.num_chunks - 1
    if chunk > 0:
        backbone.embedding = Received(backbone.embedding.word_embedding if is_last else None)
    if not is_last:
        backbone.layernorm = nn.Identity()
        backbone.top_query_embedding = nn.Identity()
        backbone.top_query_layer = PassOn()
    for parameter in model.get_parameters():
        parameter.name = names[id(parameter)]  # MindSpore renames the parameters of a cell that is assigned


class Received(nn.Cell):
    """Replaces the embedding of a later chunk: it passes on the hidden states that were received."""

    def __init__(self, word_embedding: nn.Cell | None):
        super().__init__()
        if word_embedding is not None:
            self.word_embedding = word_embedding

    def construct(self, x: Tensor, position_ids: Tensor, dropout_key: Tensor | None = None) -> Tensor:
        return x


class PassOn(nn.Cell):
    """Replaces the query layer of an earlier chunk: it passes on the hidden states."""

    def construct(self, x: Tensor, *others: Tensor) -> tuple[Tensor, float]:
        return x, 0.0


class Links:
    """Exchanges with the neighbouring stages. Both neighbours must call the same exchange at the same time.

    With virtual stages, the last stage and the first one are neighbours too.

    Args:
        mesh: This rank's place.
    """

    def __init__(self, mesh: Mesh):
        stages, stage = mesh.plan.pipeline, mesh.at.pipeline
        edges = {stage, (stage - 1) % stages} - ({stages - 1} if mesh.plan.virtual_stages == 1 else set())
        self._exchanges = {}
        # Neighbours create their group together. The groups above even stages come first, so that none waits for ever.
        for lower in sorted(edges, key=lambda number: (number % 2, number)):
            pair = sorted(mesh.plan.at_stage(mesh.rank, number % stages) for number in (lower, lower + 1))
            self._exchanges[lower == stage] = NeighbourExchange(mesh.group_of(tuple(pair)))

    def up(self, x: Tensor) -> Tensor:
        """Send to the next stage, and return what it sends."""
        return self._exchanges[True](x)

    def down(self, x: Tensor) -> Tensor:
        """Send to the previous stage, and return what it sends."""
        return self._exchanges[False](x)


class Forward(nn.Cell):
    """Forward pass of a chunk. The last chunk returns the loss, the others return hidden states.

    Inputs:
        x: Ids (B, S) in the first chunk, hidden states (B * S, H) in the others.
        position_ids, attention_mask, dropout_key, ids, loss_mask: The inputs of PanguAlphaWithLoss.
    """

    def __init__(self, network: PanguAlphaWithLoss, is_last: bool):
        super().__init__(auto_prefix=False)
        self.network, self.is_last = network, is_last

    def construct(
        self,
        x: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        dropout_key: Tensor | None,
        ids: Tensor,
        loss_mask: Tensor | None,
    ) -> Tensor:
        x, _ = self.network.model.backbone(x, position_ids, attention_mask, dropout_key)
        return self.network.of_hidden(x, ids, loss_mask) if self.is_last else x


class ChunkObjective(nn.Cell):
    """Scalar that is differentiated in a chunk. Its gradients are this chunk's gradients of the whole objective.

    Inputs:
        x: See Forward.
        gradient: Gradient of the objective with respect to what the chunk returns; None in the last chunk.
        loss_scale: Scale of the objective.
        position_ids, attention_mask, dropout_key, ids, loss_mask: See Forward.

    Returns:
        The scalar, and the loss in the last chunk or 0 in the others.
    """

    def __init__(self, network: PanguAlphaWithLoss, is_last: bool):
        super().__init__(auto_prefix=False)
        self.network, self.is_last = network, is_last

    def construct(
        self,
        x: Tensor,
        gradient: Tensor | None,
        loss_scale: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        dropout_key: Tensor | None,
        ids: Tensor,
        loss_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x, balance = self.network.model.backbone(x, position_ids, attention_mask, dropout_key)
        if self.is_last:
            loss = self.network.of_hidden(x, ids, loss_mask)
            return self.network.add_balance(loss, balance) * loss_scale, loss
        product = ops.cast(x, ms.float32) * ops.cast(gradient, ms.float32)
        zero = Tensor(0.0, ms.float32)
        return ops.ReduceSum()(product) + self.network.add_balance(zero, balance) * loss_scale, zero


class Backward(nn.Cell):
    """Backward pass of a chunk, which adds the gradients to their sums. It takes the inputs of ChunkObjective.

    Returns:
        The loss, and the gradient of x. In the first chunk x is ids, and the second result is the loss again.
    """

    def __init__(self, network: PanguAlphaWithLoss, sums: ParameterTuple, is_first: bool, is_last: bool):
        super().__init__(auto_prefix=False)
        self.sums, self.is_first = sums, is_first
        self.value_and_gradients = ms.value_and_grad(
            ChunkObjective(network, is_last),
            None if is_first else 0,
            ParameterTuple(network.model.trainable_params()),
            has_aux=True,
        )

    def construct(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (_, loss), gradients = self.value_and_gradients(*inputs)
        if self.is_first:
            return ops.depend(loss, add_to(self.sums, gradients)), loss
        return ops.depend(loss, add_to(self.sums, gradients[1])), gradients[0]


class PipelineStepper:
    """Same as `src.pangu_alpha_wrapcell.Stepper`, for a rank that holds one pipeline stage.

    Args:
        networks: The loss of a model after `keep_chunk`, for each chunk of this stage.
        apply_gradients: Applies the summed gradients of the chunks' parameters, chunk by chunk.
        mesh: This rank's place.
        sequence_parallel: Each tensor-parallel rank sends only its own tokens to the next stage.
    """

    def __init__(
        self,
        networks: Sequence[PanguAlphaWithLoss],
        apply_gradients: ApplyGradients,
        mesh: Mesh,
        sequence_parallel: bool = False,
    ):
        plan, model = mesh.plan, networks[0].model.config
        self._pad_token, self._total = networks[0].pad_token, mesh.total_of_data
        self._width, self._dtype = model.hidden_size, getattr(ms, model.compute_dtype)
        self._token_parts = plan.tensor if sequence_parallel else 1
        self._links = Links(mesh)
        self._chunks = plan.chunks(mesh.at.pipeline)
        self._first, self._last = 0, plan.num_chunks - 1
        sums = [zero_sums(network.model.trainable_params()) for network in networks]
        self._forward = [
            Forward(network, chunk == self._last) for network, chunk in zip(networks, self._chunks, strict=True)
        ]
        self._backward = [
            Backward(network, of_chunk, chunk == self._first, chunk == self._last)
            for network, of_chunk, chunk in zip(networks, sums, self._chunks, strict=True)
        ]
        self._apply = ApplySums(apply_gradients, ParameterTuple([one for of_chunk in sums for one in of_chunk]))
        self.is_finite = apply_gradients.is_finite
        self._slots = Schedule(plan, apply_gradients.micro_batches).of_stage(mesh.at.pipeline)

    def train(self, loss_scale: float, scalars: StepScalars, micro_batches: Iterable[Inputs]) -> StepResult:
        """Run one optimizer step over micro-batches. Each one holds the inputs of PanguAlphaWithLoss.

        Returns:
            The result of the step. Its loss is 0 in all stages but the last.
        """
        batches = list(micro_batches)
        weights = token_weights(batches, self._pad_token, self._total)
        scales = [Tensor(np.float32(loss_scale * weight)) for weight in weights]
        in_flight: dict[Work, Tensor] = {}
        losses: list[Tensor] = []
        nothing = x = gradient = self._nothing(batches[0])
        self.is_finite.begin()
        for slot in self._slots:
            above = below = nothing  # what goes to the neighbours
            if slot.forward:
                lap, batch = slot.forward.lap, batches[slot.forward.micro_batch]
                in_flight[slot.forward] = self._input(lap, batch, x)
                if self._chunks[lap] != self._last:
                    above = self._forward[lap](in_flight[slot.forward], *self._others(batch))
            if slot.backward:
                lap, number = slot.backward.lap, slot.backward.micro_batch
                sent_back = gradient if self._chunks[lap] != self._last else None
                loss, of_x = self._backward[lap](
                    in_flight.pop(slot.backward), sent_back, scales[number], *self._others(batches[number])
                )
                if self._chunks[lap] != self._first:
                    below = of_x
                if lap == len(self._chunks) - 1:
                    losses.append(loss)
            for is_with_next in slot.exchanges:
                if is_with_next:
                    gradient = self._links.up(above)
                else:
                    x = self._links.down(below)
        norm, finite = self._apply(Tensor(np.float32(loss_scale)), *scalars.tensors())
        return StepResult(weighted_mean(losses, weights), float(norm.asnumpy()), bool(finite.asnumpy()))

    def evaluate(self, batch: Inputs) -> float:
        """Return this rank's share of the loss of a batch. It is 0 in all stages but the last."""
        loss, nothing = 0.0, self._nothing(batch)
        for lap, chunk in enumerate(self._chunks):
            x = self._links.down(nothing) if chunk != self._first else nothing
            result = self._forward[lap](self._input(lap, batch, x), *self._others(batch))
            if chunk == self._last:
                loss = float(result.asnumpy())
            else:
                self._links.up(result)
        return loss

    def _nothing(self, batch: Inputs) -> Tensor:
        return ops.zeros((batch[1].size // self._token_parts, self._width), self._dtype)

    def _input(self, lap: int, batch: Inputs, x: Tensor) -> Tensor:
        """Return the input of a chunk: ids in the first one, and the hidden states x in the others."""
        return batch[0][:, :-1] if self._chunks[lap] == self._first else x

    @staticmethod
    def _others(batch: Inputs) -> tuple[Tensor | None, ...]:
        """Return the inputs of Forward after x, from the inputs of PanguAlphaWithLoss."""
        ids, position_ids, attention_mask, loss_mask, dropout_key = batch
        return position_ids, attention_mask, dropout_key, ids, loss_mask


class Relay:
    """Runs the stages one after another in generation. All ranks get the logits of the last stage.

    There are no virtual stages in generation.

    Args:
        mesh: This rank's place.
        config: The whole model.
    """

    def __init__(self, mesh: Mesh, config: PanguAlphaConfig):
        self._links = Links(mesh)
        self._is_first, self._is_last = mesh.at.pipeline == 0, mesh.at.pipeline == mesh.plan.last_stage
        self._sum = AllReduce(mesh.group("pipeline"))
        self._width, self._vocab_size = config.hidden_size, config.vocab_size
        self._dtype = getattr(ms, config.compute_dtype)

    def __call__(
        self, stage: Callable[..., Tensor], ids: Tensor, position: Tensor, last: Tensor, rows: Tensor
    ) -> Tensor:
        """Return the logits (B, V) float32 after the last token of each row.

        Args:
            stage: This stage's part of src.inference.mindspore.runtime.NextLogits.
            ids: New tokens (B, T) int32.
            position, last, rows: See NextLogits; (B,) int32.
        """
        x = None
        if not self._is_first:
            x = self._links.down(ops.zeros((ids.size, self._width), self._dtype))
        result = stage(ids, position, last, rows, x)
        if not self._is_last:
            self._links.up(result)
            result = ops.zeros((ids.shape[0], self._vocab_size), ms.float32)
        return self._sum(result)
