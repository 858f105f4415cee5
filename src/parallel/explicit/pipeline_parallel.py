"""Pipeline parallel: the layers are cut into stages on different ranks, and micro-batches follow each other (1F1B).

A rank keeps only the input of a micro-batch in flight. The backward pass of a stage computes its forward pass again
from it. The order of work is that of PipeDream-Flush (arXiv 2006.09503).
"""

from collections import deque
from collections.abc import Callable, Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

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


def keep_stage(model: PanguAlphaModel, mesh: Mesh) -> None:
    """Keep only the layers of this rank's stage in a model.

    The backbone of every stage but the first takes hidden states of the previous stage instead of ids. The backbone of
    every stage but the last returns hidden states for the next stage. The last stage keeps the word table for the head.

    Args:
        model: A model that was built without data.
        mesh: This rank's place.
    """
    plan, stage = mesh.plan, mesh.at.pipeline
    if plan.pipeline == 1:
        return
    names = {id(parameter): parameter.name for parameter in model.get_parameters()}
    backbone, layers = model.backbone, plan.layers(stage)
    blocks = [backbone.blocks[i] for i in layers if i < plan.num_layers - 1]
    backbone.blocks = nn.CellList(blocks)
    is_last = stage == plan.pipeline - 1
    if stage > 0:
        backbone.embedding = Received(backbone.embedding.word_embedding if is_last else None)
    if not is_last:
        backbone.layernorm = nn.Identity()
        backbone.top_query_embedding = nn.Identity()
        backbone.top_query_layer = PassOn()
    for parameter in model.get_parameters():
        parameter.name = names[id(parameter)]  # MindSpore renames the parameters of a cell that is assigned


class Received(nn.Cell):
    """Replaces the embedding of a later stage: it passes on the hidden states that were received."""

    def __init__(self, word_embedding: nn.Cell | None):
        super().__init__()
        if word_embedding is not None:
            self.word_embedding = word_embedding

    def construct(self, x: Tensor, position_ids: Tensor, dropout_key: Tensor | None = None) -> Tensor:
        return x


class PassOn(nn.Cell):
    """Replaces the query layer of an earlier stage: it passes on the hidden states."""

    def construct(self, x: Tensor, *others: Tensor) -> tuple[Tensor, float]:
        return x, 0.0


class Links:
    """Exchanges with the neighbouring stages. Both neighbours must call the same exchange at the same time.

    Args:
        mesh: This rank's place.
    """

    def __init__(self, mesh: Mesh):
        last, stage = mesh.plan.pipeline - 1, mesh.at.pipeline
        self.is_first, self.is_last = stage == 0, stage == last
        self._exchanges = {}
        # Neighbours create their group together. The groups above even stages come first, so that none waits for ever.
        for lower in sorted((stage - 1, stage), key=lambda number: number % 2):
            if 0 <= lower < last:
                pair = mesh.plan.at_stage(mesh.rank, lower), mesh.plan.at_stage(mesh.rank, lower + 1)
                self._exchanges[lower == stage] = NeighbourExchange(mesh.group_of(pair))

    def up(self, x: Tensor) -> Tensor:
        """Send to the next stage, and return what it sends."""
        return self._exchanges[True](x)

    def down(self, x: Tensor) -> Tensor:
        """Send to the previous stage, and return what it sends."""
        return self._exchanges[False](x)


class Stage(nn.Cell):
    """Forward pass of a stage. The last stage returns the loss, the others return hidden states.

    Inputs:
        x: Ids (B, S) in the first stage, hidden states (B * S, H) in the others.
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


class StageObjective(nn.Cell):
    """Scalar that is differentiated in a stage. Its gradients are this stage's gradients of the whole objective.

    Inputs:
        x: See Stage.
        gradient: Gradient of the objective with respect to what the stage returns; None in the last stage.
        loss_scale: Scale of the objective.
        position_ids, attention_mask, dropout_key, ids, loss_mask: See Stage.

    Returns:
        The scalar, and the loss in the last stage or 0 in the others.
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
    """Backward pass of a stage, which adds the gradients to their sums. It takes the inputs of StageObjective.

    Returns:
        The loss, and the gradient of x. In the first stage x is ids, and the second result is the loss again.
    """

    def __init__(self, network: PanguAlphaWithLoss, parameters: list[Parameter], sums: ParameterTuple, links: Links):
        super().__init__(auto_prefix=False)
        self.sums, self.is_first = sums, links.is_first
        self.value_and_gradients = ms.value_and_grad(
            StageObjective(network, links.is_last),
            None if links.is_first else 0,
            ParameterTuple(parameters),
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
        network: The loss of a model after `keep_stage`.
        parameters: Parameters of this stage.
        apply_gradients: Applies the summed gradients.
        mesh: This rank's place.
        sequence_parallel: Each tensor-parallel rank sends only its own tokens to the next stage.
    """

    def __init__(
        self,
        network: PanguAlphaWithLoss,
        parameters: list[Parameter],
        apply_gradients: ApplyGradients,
        mesh: Mesh,
        sequence_parallel: bool = False,
    ):
        self._pad_token, self._total = network.pad_token, mesh.total_of_data
        self._stages_after = mesh.plan.pipeline - 1 - mesh.at.pipeline
        self._links = Links(mesh)
        model = network.model.config
        self._width, self._dtype = model.hidden_size, getattr(ms, model.compute_dtype)
        self._token_parts = mesh.plan.tensor if sequence_parallel else 1
        self._stage = Stage(network, self._links.is_last)
        sums = zero_sums(parameters)
        self._backward = Backward(network, parameters, sums, self._links)
        self._apply = ApplySums(apply_gradients, sums)
        self.is_finite = apply_gradients.is_finite

    def train(self, loss_scale: float, scalars: StepScalars, micro_batches: Iterable[Inputs]) -> StepResult:
        """Run one optimizer step over micro-batches. Each one holds the inputs of PanguAlphaWithLoss.

        Returns:
            The result of the step. Its loss is 0 in all stages but the last.
        """
        losses, batches, in_flight = [], deque(micro_batches), deque()
        weights = token_weights(list(batches), self._pad_token, self._total)
        scales = deque(Tensor(np.float32(loss_scale * weight)) for weight in weights)
        nothing = self._nothing(batches[0])
        self.is_finite.begin()

        def forward(x: Tensor, batch: Inputs) -> Tensor | None:
            """Compute a micro-batch and send it up. The next stage sends the gradient of an earlier one back."""
            in_flight.append((x, self._others(batch)))
            return None if self._links.is_last else self._links.up(self._stage(x, *in_flight[-1][1]))

        def backward(gradient: Tensor | None) -> Tensor:
            x, others = in_flight.popleft()
            loss, of_x = self._backward(x, gradient, scales.popleft(), *others)
            losses.append(loss)
            return of_x

        for _ in range(min(self._stages_after, len(batches))):
            batch = batches.popleft()
            forward(self._from_below(batch, nothing), batch)
        x = self._from_below(batches[0], nothing) if batches else nothing
        while batches:
            of_x = backward(forward(x, batches.popleft()))
            if not self._links.is_first:
                x = self._links.down(of_x)
            elif batches:
                x = self._from_below(batches[0], nothing)
        while in_flight:
            of_x = backward(self._links.up(nothing))
            if not self._links.is_first:
                self._links.down(of_x)
        norm, finite = self._apply(Tensor(np.float32(loss_scale)), *scalars.tensors())
        return StepResult(weighted_mean(losses, weights), float(norm.asnumpy()), bool(finite.asnumpy()))

    def evaluate(self, batch: Inputs) -> float:
        """Return this rank's share of the loss of a batch. It is 0 in all stages but the last."""
        result = self._stage(self._from_below(batch, self._nothing(batch)), *self._others(batch))
        if self._links.is_last:
            return float(result.asnumpy())
        self._links.up(result)
        return 0.0

    def _nothing(self, batch: Inputs) -> Tensor:
        return ops.zeros((batch[1].size // self._token_parts, self._width), self._dtype)

    def _from_below(self, batch: Inputs, nothing: Tensor) -> Tensor:
        return batch[0][:, :-1] if self._links.is_first else self._links.down(nothing)

    @staticmethod
    def _others(batch: Inputs) -> tuple[Tensor | None, ...]:
        """Return the inputs of Stage after x, from the inputs of PanguAlphaWithLoss."""
        ids, position_ids, attention_mask, loss_mask, dropout_key = batch
        return position_ids, attention_mask, dropout_key, ids, loss_mask


class Relay:
    """Runs the stages one after another in generation. All ranks get the logits of the last stage.

    Args:
        mesh: This rank's place.
        config: The whole model.
    """

    def __init__(self, mesh: Mesh, config: PanguAlphaConfig):
        self._links = Links(mesh)
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
        if not self._links.is_first:
            x = self._links.down(ops.zeros((ids.size, self._width), self._dtype))
        result = stage(ids, position, last, rows, x)
        if not self._links.is_last:
            self._links.up(result)
            result = ops.zeros((ids.shape[0], self._vocab_size), ms.float32)
        return self._sum(result)
