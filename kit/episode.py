"""A few-shot task, the prompts of the tasks that only evaluation asks, and a picture with nothing to see."""
from dataclasses import dataclass
from typing import Callable

from PIL import Image

from data import Document, Example, Given, Media, question_prompt


def blank_frame():
    return [Image.new('RGB', (48, 48), (128, 128, 128))]


BLANK = Media('blank', blank_frame)


@dataclass
class Episode:
    """A few-shot task: examples to learn from, and a query whose answer is the truth (§2.5, appendix A.2).

    choices:     answers to choose from, by log-likelihood; None: the answer is generated
    check(text): whether a generated answer is right; by default when it is the same text
    people:      all answers or captions that people gave, if the metric wants several (VQA accuracy, CIDEr)
    relevance:   how right each choice is, where that is a matter of degree (VisDial's NDCG)
    where:       file and line, for messages
    induction:   text that opens the prompt (Frozen's "Answer with dax or blicket.")
    """
    support: list
    query: Example
    choices: list | None = None
    check: Callable[[str], bool] | None = None
    people: list | None = None
    relevance: list | None = None
    where: str = ''
    induction: str = ''

    def document(self):
        pieces = [Given(self.induction)] if self.induction else []
        pieces += [piece for example in self.support for piece in example.pieces()]
        return Document(pieces + self.query.pieces(answered=False), 'prompt', self.where)

    def is_right(self, text):
        if self.check is not None:
            return self.check(text)
        return plain(text) == plain(self.query.answer)


def plain(text):
    """An answer as it is compared: without spaces around it, a final full stop, capital letters."""
    return text.strip().rstrip('.').lower()


# ---------------------------------------------------------------------------------------------
# Prompts, in the paper's words. The answer follows after a space.

ACTION_PROMPT = 'Caption:'   # unusual actions, RareAct: 'Caption: a person cuts a phone'


def statement_prompt(text, asked='Is it hateful?'):
    """A text on a picture, to be judged: yes or no (the form that the paper found for HatefulMemes)."""
    return f'is an image with written: "{text}" on it. {asked} Answer:'


def dialogue_prompt(caption, turns, question):
    """VisDial: the caption unprompted, the turns so far [(question, answer), …], and what is asked now."""
    said = [f'{question_prompt(q)} {a}' for q, a in turns]
    return ' '.join([*([caption] if caption else []), *said, question_prompt(question)])
