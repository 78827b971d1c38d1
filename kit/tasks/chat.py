"""A dialogue about pictures, turn by turn. What was said is kept as keys and values, never read again.

    chat = Chat(asker)
    chat.image(media)              # a picture, or a clip
    chat.ask('what color is it?')  # -> 'red'
    chat.undo()                    # as if the last question, or the last picture, had not been

    python sample.py --chat=True
"""
import os
import sys

import torch

from data import Document, Given, Media, question_prompt
from kit import answers
from kit.files import BadInput, BadItem, one_line, whole_file
from kit.show import canvas
from kit.tasks.prompts import as_text
from kit.tasks.tables import sheet


HELP = ('/image PATH shows a picture, /undo takes the last step back, /reset starts over, '
        '/save writes chat.png and chat.txt, /quit ends')


class Chat:
    """pieces: everything so far, as a Document would hold it. Raises BadInput where something does not fit
    the context, and BadItem where a picture cannot be read; either leaves the chat as it was.

    generate: options of `answers.search` (beam_size, temperature, top_k, generator).
    """

    def __init__(self, asker, max_new_tokens=32, **generate):
        self.asker, self.model, self.tokenizer = asker, asker.model, asker.tokenizer
        self.max_new_tokens, self.generate = max_new_tokens, generate
        self.reset()

    def reset(self):
        lm, device = self.model.lm, self.asker.features.device
        self.cache = answers.Cache(self.model.config, 1, lm.n_context, device, lm.wte.weight.dtype)
        self.pieces = []
        self.before = []  # for each step that can be undone, (pieces, tokens (1,), pictures) until then
        self.read([self.tokenizer.bos], 0)

    @property
    def n_image(self):
        return len(self.document().media)

    def document(self):
        """The chat as one prompt."""
        return Document(list(self.pieces), 'prompt', 'chat')

    @torch.no_grad()
    def read(self, ids, image):
        """Tokens that follow, which look at picture number `image`, into the cache -> logits after the last
        of them (1,V+2)"""
        tokens = torch.tensor([ids], device=self.cache.length.device)
        y = answers.read(self.model, self.cache, tokens, torch.full_like(tokens, image))
        return self.model.head(y[:, -1])

    def check_room(self, n, what):
        held = int(self.cache.length)
        if held + n > self.model.lm.n_context:
            raise BadInput(f'{what}: {held + n} tokens are longer than the context of '
                           f'{self.model.lm.n_context}; /undo or /reset')

    @torch.no_grad()
    def image(self, media):
        """Show a picture; what is said from now on sees this one."""
        self.check_room(2, 'no room for a picture')
        for kept in (self.asker.features.kept, self.asker.features.pixels.kept):
            kept.drop(media.key)  # a file of the same name may be another picture by now
        features, frame_mask = self.asker.features([[media]])
        visual = self.model.resample(features, frame_mask)  # of this picture alone
        self.before.append((list(self.pieces), self.cache.length, self.n_image))
        if self.pieces:
            self.read([self.tokenizer.eoc], self.n_image)  # <EOC> before each image but the first
        self.cache.show(visual)
        self.pieces.append(media)
        self.read([self.tokenizer.image], self.n_image)

    @torch.no_grad()
    def ask(self, question):
        """-> the answer, as text"""
        start = not self.pieces or isinstance(self.pieces[-1], Media)
        asked = Given(('' if start else ' ') + question_prompt(question))
        ids = self.tokenizer.encode(asked)
        self.check_room(len(ids) + 1, 'the question')
        state = (list(self.pieces), self.cache.length, self.n_image)
        logits = self.read(ids, self.n_image)
        room = self.model.lm.n_context - int(self.cache.length)
        cache, n_new = self.cache.copy(), min(self.max_new_tokens, room)
        index = cache.keep_seen(torch.full((1, 1), self.n_image, device=logits.device))
        # The search for an answer may leave beams of any kind behind: it works on a copy. Then the answer is
        # read, once, as words and not as the ids found: the history is what a reader would see.
        n_new = torch.full((1,), n_new, device=logits.device)
        [(answer, _)] = answers.search(self.model, cache, logits, index, n_new, **self.generate)
        text = self.tokenizer.decode(answer)
        said = self.tokenizer.encode(text)[:room]
        if said:
            self.read(said, self.n_image)
        self.before.append(state)
        self.pieces += [asked, text]
        return text.strip()

    def undo(self):
        """Take the last picture or the last question back. Raises BadInput where there is none."""
        if not self.before:
            raise BadInput('/undo: nothing was said yet')
        self.pieces, length, n_image = self.before.pop()
        self.cache.keep(length, n_image)


def chat_turn(chat, line, out_dir):
    """One line of a person's -> what to print. Raises BadInput or BadItem, the chat unchanged."""
    name, _, rest = line.partition(' ')
    if not name.startswith('/'):
        return chat.ask(line)
    if name == '/image' and rest.strip():
        chat.image(chat.asker.media(rest.strip()))
        return f'picture {chat.n_image}'
    if name == '/undo':
        chat.undo()
        return f'{len(chat.before)} steps'
    if name == '/reset':
        chat.reset()
        return 'a new chat'
    if name == '/save':
        picture, text = os.path.join(out_dir, 'chat.png'), os.path.join(out_dir, 'chat.txt')
        canvas.save(sheet([('', chat.document(), {'prediction': '', 'answer': ''})]), picture)
        with whole_file(text, 'w') as f:  # --prompt_file reads it
            f.write(as_text(chat.document()))
        return f'saved as {picture} and chat.txt'
    raise BadInput(HELP)


def run_chat(chat, out_dir):
    """Lines from the keyboard, or from a pipe, until there are no more."""
    print(HELP, file=sys.stderr)
    if hasattr(sys.stdin, 'reconfigure'):
        sys.stdin.reconfigure(errors='replace')  # a byte that is no text is no reason to fail
    while True:
        print('> ' if sys.stdin.isatty() else '', end='', file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == '/quit':
            return
        if line.strip():
            try:
                print(one_line(chat_turn(chat, line.strip(), out_dir)), flush=True)
            except (BadInput, BadItem, OSError) as e:  # the chat is as it was
                print(f'error: {one_line(e)}', file=sys.stderr, flush=True)
