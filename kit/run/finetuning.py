"""What fine-tuning does otherwise than the Flamingo stage: it begins where that ended, and trains the vision
encoder, too, or less than all (kit/adapt.py)."""
from functools import partial

from kit.adapt import begin, grown, WAYS, with_prompt
from kit.features import stack_frames
from kit.weights import checkpoint


class Finetuning:
    """train.FinetuneStage is this, before train.FlamingoStage."""

    def __init__(self, run):
        super().__init__(run)
        self.n_iter = self.config.finetune_iters
        self.lr = self.config.finetune_lr * WAYS[self.config.adapt].lr
        if self.config.adapt == 'prompt':
            self.data.change = partial(with_prompt, config=run.model_config)

    def load(self):
        contrastive, module = super().load(WAYS[self.config.adapt].model)
        path, state = self.run.path('flamingo.pt'), self.run.load_stage('flamingo', 'flamingo')['flamingo']
        checkpoint.load_into(module, grown(module, state), path)
        begin(module, self.config.adapt)  # what trains: all but the language model, or a few weights
        return contrastive, module

    def pictures(self, batch):
        """Pixels: the features of an encoder that trains cannot be kept."""
        if self.module.vision in self.module.frozen:
            return super().pictures(batch)
        pixels, frame_mask = stack_frames(batch.media, self.run.reader.pixels)
        device = self.run.device
        return {} if pixels is None else {'media': pixels.to(device), 'frame_mask': frame_mask.to(device)}

    def evaluate(self):
        if self.module.vision not in self.module.frozen:
            self.features.kept.clear()  # the encoder has changed
        return super().evaluate()

    def content(self):
        return super().content() | {'adapt': self.config.adapt}
