"""Prompt a trained Flamingo.

    python sample.py                                       # a few-shot prompt on pictures it has never seen
    python sample.py --prompt='<image:a.png>Output: a cat.<EOC><image:b.png>Output:'
    python sample.py --prompt_file=prompt.txt --choices='dax|blicket'
    python sample.py --temperature=0.8 --top_k=20 --num_samples=3 --json=True
    python sample.py --prompt='<image:q.png>Output:' --rices=pictures --shots=8   # examples that look like q
    python sample.py --attention=look.png                  # where each word comes from
    python sample.py --explain=True --picture=way.png      # the prompt on its way through the model
    python sample.py --chat=True                           # ask about pictures, turn by turn
    python sample.py --page=True                           # a page to prompt on

<image:PATH> stands for a picture, an animated GIF, WebP or APNG, or a folder of frames. <EOC> ends an
example. The prompt with its answer is saved as one picture, out_dir/sample.png. A prompt is answered so:

    parse_prompt         kit/tasks/prompts.py   text -> Document: texts and pictures, in order
    answers_to           kit/tasks/prompted.py  Document -> its answers, by the next two:
      Asker.prompts      kit/tasks/asker.py     -> tokens, φ (data.encode), the features of the frozen encoder
      generate, score    kit/answers.py         -> the likeliest text, or how likely each of --choices is
                                                (in plain form: `greedy` below, `log_likelihoods` there)
"""
import json
import os
import sys

import numpy as np
import torch

from kit.answers import forbid
from kit.cli import check_range, command, configure
from kit.device import pick_device
from kit.files import BadInput, read_text
from kit.page.server import serve
from kit.show import canvas, sheets
from kit.tasks import explain, occlusion, rices
from kit.tasks.asker import CHECKPOINT, find_checkpoint, LEAST_FPS, load, MOST_FRAMES
from kit.tasks.chat import Chat, run_chat
from kit.tasks.prompted import answers_to, check_answer_keys, print_answers, search_options
from kit.tasks.prompts import file_media, parse_prompt
from kit.tasks.tables import sheet
from kit.world.draw import HELD_PAIRS
from kit.world.tasks import naming_episode

GROUPS = {  # of --help: what they are for, and of each key its default and its meaning
    'the model': {
        'out_dir': ('out', 'folder with the flamingo.pt to prompt'),
        'checkpoint': (CHECKPOINT, 'file in out_dir, or a path; assets/nano.pt if there is none'),
        'device': ('auto', 'auto, cpu, cuda, mps'),
        'n_frame': (0, 'most frames of a clip; 0 for those of training (the paper: 8, then 30)'),
        'fps': (1.0, 'frames a second of animations (the paper: 1 in training, then 3)'),
    },
    'the prompt': {
        'prompt': ('', 'texts and <image:PATH>; empty for a prompt of the drawn world'),
        'prompt_file': ('', 'a file with the prompt'),
        'ways': (4, 'without a prompt: how many made-up names it shows'),
        'shots': (1, 'without a prompt: how many examples of each; with rices: how many in all'),
        'rices': ('', 'a folder: the prompt begins with its pictures most like the last one'),
        'images': ('', 'the folder of pictures, where rices is a COCO file'),
        'chat': (False, 'a dialogue; /image PATH shows a picture'),
        'page': (False, 'a page to prompt on, in the browser'),
        'port': (8000, 'of the page; 0 for a free one'),
        'host': ('127.0.0.1', 'address of the page; any but this computer itself lets others in'),
    },
    'the answer': {
        'choices': ('', 'answers to rank by log-likelihood, separated by |, instead of writing one'),
        'calibrate': (False, 'rank choices by what the pictures of the examples add (the paper does not)'),
        'beam_size': (3, 'beams of the search for the most likely answer; 1 is greedy'),
        'temperature': (0.0, '0 for the most likely answer, above for sampling'),
        'top_k': (0, 'with a temperature: sample from this many most likely words; 0 for all'),
        'num_samples': (1, 'answers to give'),
        'max_new_tokens': (32, 'longest answer'),
        'seed': (0, 'of sampling, and of the prompt without one'),
    },
    'what is shown': {
        'json': (False, 'print one JSON object for each answer'),
        'attention': ('', 'a PNG to write: for each word, where in its picture it comes from'),
        'explain': (False, 'follow the prompt through the model: tokens, tensors, likeliest words'),
        'picture': ('', 'a PNG to write of what explain shows'),
    },
}
KEYS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
MOST_PROMPT = 1 << 20  # bytes of a prompt file


# ---------------------------------------------------------------------------------------------
# The idea of writing an answer (§2.5), in plain form


@torch.no_grad()
def greedy(model, tokens, image_index, visual=None, n_new=32):
    """One prompt (1,T) and its visual tokens (1,N,R,D_r), from Flamingo.resample -> ids: the likeliest next
    word (never <image>, <BOS> or <PAD>), again and again, to <EOC>. The whole prompt is read again for every
    word. What runs is kit.answers.generate: with one beam it finds the same, but reads each word once."""
    answer = []
    while len(answer) < n_new:
        y = model.stream(tokens, image_index, visual)                                 # (1,T,D)
        word = forbid(model, model.head(y[:, -1])).argmax(-1, keepdim=True)           # (1,1)
        if word == model.eoc:
            break
        answer.append(word.item())
        tokens = torch.cat([tokens, word], dim=1)
        image_index = torch.cat([image_index, image_index[:, -1:]], dim=1)    # it sees what the last word saw
    return answer


# ---------------------------------------------------------------------------------------------
# The command


def read_prompt(config, media=file_media):
    """What the keys say -> (Document, the true answer or None). media: path -> Media. Raises BadInput."""
    if config.prompt and config.prompt_file:
        raise BadInput('--prompt and --prompt_file: give one of the two')
    if config.prompt:
        return parse_prompt(config.prompt, media=media), None
    if config.prompt_file:
        return parse_prompt(read_text(config.prompt_file, MOST_PROMPT), config.prompt_file, media), None
    episode = naming_episode(np.random.default_rng([config.seed, 2]), 'held', config.ways, config.shots)
    return episode.document(), episode.query.answer


def main():
    config = configure(KEYS, usage=__doc__, groups=GROUPS)
    check_answer_keys(config)
    check_range(config, 1, len(HELD_PAIRS), 'ways')
    check_range(config, 1, 100, 'shots')
    check_range(config, 0, MOST_FRAMES, 'n_frame')
    check_range(config, LEAST_FPS, MOST_FRAMES, 'fps')
    check_range(config, 0, 65535, 'port')
    device = pick_device(config.device, meta=False)
    path = find_checkpoint(config.out_dir, config.checkpoint)
    asker, contrastive = load(path, device, n_frame=config.n_frame, fps=config.fps)
    if config.page:
        return serve(asker, config, path)
    search = search_options(config, device)
    if config.chat:
        return run_chat(Chat(asker, config.max_new_tokens, **search), config.out_dir)
    document, truth = read_prompt(config, asker.media)
    if config.rices:
        document = rices.with_examples(document, config, asker, contrastive)
    answers = answers_to(document, config, asker, search)
    if config.json:
        for _, said in answers:
            print(json.dumps(said, ensure_ascii=False))
    else:
        print_answers(document, truth, answers)
    if config.attention:
        steps, title = occlusion.words(asker, document, asker.tokenizer.encode(' ' + answers[0][0]))
        canvas.save(sheets.attention_sheet(steps, title=title), config.attention)
    if config.explain or config.picture:
        explain.show(asker, document, answers[0][0], config)
    picture = os.path.join(config.out_dir, 'sample.png')
    canvas.save(sheet([('', document, {'prediction': answers[0][0], 'answer': truth})]), picture)
    if not config.json:
        print(f'saved as {picture}', file=sys.stderr)


if __name__ == '__main__':
    command(main)
