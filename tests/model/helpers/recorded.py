"""Training of which every step is kept."""

from bitdance.training.trainer import Trainer


class Recorded(Trainer):
    """A trainer that keeps the norm of the gradient, the loss and its terms of every step."""

    def _one_step(self, batches):
        values = super()._one_step(batches)
        self.values = [*getattr(self, "values", ()), values]
        return values
