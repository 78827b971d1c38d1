"""Prompt a trained Flamingo.

    python sample.py                                            # a few-shot prompt on pictures it has never seen
    python sample.py --prompt='<image:a.png>Output: a cat.<EOC><image:b.png>Output:'
    python sample.py --prompt_file=prompt.txt --choices='dax|blicket'
    python sample.py --temperature=0.8 --top_k=20 --num_samples=3 --json=True
    python sample.py --prompt='<image:q.png>Output:' --rices=my_pictures --shots=8   # examples that look like q.png
    python sample.py --attention=look.png                       # where it looks at each word
    python sample.py --chat=True                                # ask about pictures, turn by turn

<image:PATH> stands for a picture, an animated GIF, WebP or APNG, or a folder of frames. <EOC> ends an example. The
prompt with its answer is saved as one picture, out_dir/sample.png.
"""
import hashlib
import json
import os
import re
import sys

import numpy as np
import torch

import evaluate
from data import Document, EndOfChunk, Given, Media
from kit.cli import check_range, command, configure
from kit.device import pick_device
from kit.files import BadInput, BadItem, one_line, open_file, whole_file
from kit.show import canvas, lettering, sheets
from kit.sources.base import Report
from kit.sources.forms import open_folder
from kit.tasks import attention, rices
from kit.tasks.asker import load
from kit.tasks.chat import Chat
from kit.tasks.files import file_media
from kit.tasks.tables import sheet
from kit.world.draw import HELD_PAIRS
from kit.world.tasks import naming_episode

KEYS = {
    'out_dir': ('out', 'folder with the flamingo.pt to prompt'),
    'checkpoint': ('flamingo.pt', 'file in out_dir; finetune.pt after fine-tuning. Without any, assets/nano.pt'),
    'device': ('auto', 'auto, cpu, cuda, mps'),
    'prompt': ('', 'texts and <image:PATH>; empty for a prompt of the embedded world'),
    'prompt_file': ('', 'a file with the prompt'),
    'choices': ('', 'answers to rank by log-likelihood, separated by |, instead of writing one'),
    'ways': (4, 'without a prompt: how many made-up names it shows'),
    'shots': (1, 'without a prompt: how many examples of each; with rices: how many in all'),
    'rices': ('', 'a folder: the prompt begins with its pictures most like the last one of the prompt, the nearest last'),
    'images': ('', 'the folder of pictures, where rices is a COCO file'),
    'beam_size': (3, 'beams of the search for the most likely answer; 1 is greedy'),
    'temperature': (0.0, '0 for the most likely answer, above for sampling'),
    'top_k': (0, 'with a temperature: sample from this many most likely words; 0 for all'),
    'num_samples': (1, 'answers to give'),
    'max_new_tokens': (32, 'longest answer'),
    'seed': (0, 'of sampling, and of the prompt without one'),
    'json': (False, 'print one JSON object for each answer'),
    'attention': ('', 'a PNG to write: for each word, where in its picture the model looks'),
    'chat': (False, 'a dialogue; /image PATH shows a picture'),
}
MOST_PROMPT = 1 << 20  # bytes of a prompt file


def parse_prompt(text, where='prompt'):
    """'<image:a.png>Output: a cat.<EOC><image:b.png>Output:' -> Document.

    Only this command's own marks mean something; what else a text holds stays text. Raises BadInput.
    """
    pieces, tags, n_picture = [], text.count('<image>'), text.count('<image:')
    if tags:
        raise BadInput(f'{where}: {tags + n_picture} <image> tags and {n_picture} pictures; write <image:PATH>')
    for part in re.split(r'(<image:[^>\n]*>|<EOC>)', text.removeprefix('<BOS>')):
        if part == '<EOC>':
            pieces.append(EndOfChunk())
        elif part.startswith('<image:'):
            path = part[len('<image:'):-1]
            if not path:
                raise BadInput(f'{where}: <image:> names no file')
            pieces.append(file_media(path))
        elif part:
            pieces.append(Given(part))
    if not pieces:
        raise BadInput(f'{where}: is empty')
    return Document(pieces, 'prompt', where)


def read_prompt(config):
    """-> (Document, truth or None)"""
    if config.prompt and config.prompt_file:
        raise BadInput('--prompt and --prompt_file: give one of the two')
    if config.prompt:
        return parse_prompt(config.prompt), None
    if config.prompt_file:
        with open_file(config.prompt_file, MOST_PROMPT) as f:
            raw = f.read()
        try:
            return parse_prompt(raw.decode('utf-8-sig').rstrip('\n'), config.prompt_file), None
        except UnicodeDecodeError as e:
            raise BadInput(f'{config.prompt_file}: not UTF-8 at byte {e.start}') from e
    episode = naming_episode(np.random.default_rng([config.seed, 2]), 'held', config.ways, config.shots)
    return episode.document(), episode.query.answer


def as_text(document):
    """The prompt as one line of text, pictures by name."""
    words = {EndOfChunk: lambda piece: '<EOC>', Given: str, str: str}
    out = ''
    for piece in document.pieces:
        if type(piece) in words:
            out += words[type(piece)](piece)
        else:  # a picture ends what came before it
            out += ('<EOC>' if out and not out.endswith('<EOC>') else '') + f'<image:{piece.key}>'
    return out


def with_examples(document, config, asker, contrastive):
    """RICES: the same prompt after the examples of a folder that look most like its last picture."""
    shown = [piece for piece in document.pieces if isinstance(piece, Media)]
    if not (config.prompt or config.prompt_file) or not shown:
        raise BadInput('--rices: give a --prompt with the picture that is asked about')
    report = Report()
    pairs = open_folder(config.rices, asker.model.config.n_frame, split=None, images=config.images, report=report)
    cache = os.path.join(config.out_dir, f'rices-{hashlib.sha256(os.fsencode(os.path.realpath(config.rices))).hexdigest()[:12]}.pt')
    found = rices.folder_embeddings(pairs, contrastive, asker.features, cache, report)
    examples = rices.nearest(shown[-1], *found, contrastive, asker.features, config.shots)
    for line in report.lines():
        print('left out', line, file=sys.stderr)
    return Document([piece for e in examples for piece in e.pieces()] + document.pieces, 'prompt', document.where)


CHAT_HELP = '/image PATH shows a picture, /undo takes the last step back, /reset starts over, /save writes chat.png and chat.txt, /quit ends'


def chat_turn(chat, line, out_dir):
    """One line of a person's -> what to print. Raises BadInput or BadItem, the chat unchanged."""
    name, _, rest = line.partition(' ')
    if not name.startswith('/'):
        return chat.ask(line)
    if name == '/image' and rest.strip():
        chat.image(file_media(rest.strip()))
        return f'picture {chat.n_image}'
    if name == '/undo':
        chat.undo()
        return f'{len(chat.before)} steps'
    if name == '/reset':
        chat.reset()
        return 'a new chat'
    if name == '/save':
        canvas.save(sheet([('', chat.document(), {'prediction': '', 'answer': ''})]), os.path.join(out_dir, 'chat.png'))
        with whole_file(os.path.join(out_dir, 'chat.txt'), 'w') as f:  # --prompt_file reads it
            f.write(as_text(chat.document()))
        return f'saved as {os.path.join(out_dir, "chat.png")} and chat.txt'
    raise BadInput(CHAT_HELP)


def run_chat(chat, out_dir):
    """Lines from the keyboard, or from a pipe, until there are no more."""
    print(CHAT_HELP, file=sys.stderr)
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


def main():
    config = configure(KEYS, usage=__doc__)
    check_range(config, 1, evaluate.MOST_BEAMS, 'beam_size')
    check_range(config, 1, 10_000, 'num_samples')
    check_range(config, 1, 1 << 40, 'max_new_tokens')
    check_range(config, 1, len(HELD_PAIRS), 'ways')
    check_range(config, 1, 100, 'shots')
    check_range(config, 0, float('inf'), 'temperature', 'top_k')
    check_range(config, 0, 2 ** 63 - 1, 'seed')
    device = pick_device(config.device, meta=False)
    asker, contrastive = load(evaluate.find_checkpoint(config), device)
    model, tokenizer = asker.model, asker.tokenizer
    search = dict(beam_size=config.beam_size, temperature=config.temperature, top_k=config.top_k, generator=torch.Generator(device).manual_seed(config.seed))
    if config.chat:
        return run_chat(Chat(asker, config.max_new_tokens, **search), config.out_dir)
    document, truth = read_prompt(config)
    if config.rices:
        document = with_examples(document, config, asker, contrastive)
    prompts = asker.prompts([document])
    if prompts['features'] is None:
        raise BadInput(f'{document.where}: has {int(prompts["length"])} tokens and 0 pictures; <image:PATH> shows one')

    answers = []
    if config.choices:
        choices = [c.strip() for c in config.choices.split('|')]
        if not all(choices):
            raise BadInput('--choices: an answer is empty')
        ids = asker.candidates(choices, prompts['tokens'].shape[1], '--choices')
        ranked = dict(zip(choices, model.score(candidates=[ids], **prompts)[0]))
        best = max(ranked, key=ranked.get)
        answers.append((best, {'choices': ranked}))
    else:
        for _ in range(config.num_samples):
            [(ids, log_p)] = model.generate(max_new_tokens=config.max_new_tokens, **search, **prompts)
            text = tokenizer.decode(ids)
            answers.append((text.strip(), {'prompt': as_text(document), 'completion': text, 'logprob': log_p}))

    if config.json:
        for _, said in answers:
            print(json.dumps(said, ensure_ascii=False))
    else:
        print(lettering.printable(as_text(document)))
        for answer, said in answers:
            if config.choices:
                for choice, log_p in sorted(said['choices'].items(), key=lambda item: -item[1]):
                    print(f'  {lettering.printable(choice)}  {log_p:.2f}')
            else:
                print(f'  → {lettering.printable(answer)}' + (f'   (it is: {truth})' if truth else ''))
    if config.attention:
        steps, title = attention.words(asker, document, tokenizer.encode(' ' + answers[0][0]))
        canvas.save(sheets.attention_sheet(steps, title=title), config.attention)
    path = os.path.join(config.out_dir, 'sample.png')
    canvas.save(sheet([('', document, {'prediction': answers[0][0], 'answer': truth})]), path)
    if not config.json:
        print(f'saved as {path}', file=sys.stderr)


if __name__ == '__main__':
    command(main)
