"""What the page can ask for: each method of Desk is one route, from a request to what goes back.

A prompt arrives as its text, as sample.py reads it, and the pictures that it names, which were sent before
and are known by the hash of their bytes:

    {"prompt": "<image:a.png>Output: dax<EOC><image:b.png>Output:", "pictures": {"a.png": id, "b.png": id}}

A name is looked up among those pictures and nowhere else: no request reaches a file on disk.
"""
import base64
import hashlib
import io
import json
import re
import zipfile
from types import SimpleNamespace

import torch
from PIL import Image

from data import CAPTION_PROMPT, Media, question_prompt
from kit.answers import forbid
from kit.cli import parse
from kit.episode import dialogue_prompt
from kit.features import Kept
from kit.files import BadInput, BadItem
from kit.show import canvas, sheets
from kit.sources.decode import Inside, is_video, media_of
from kit.tasks import attention, occlusion
from kit.tasks.controls import blanked, spoilt
from kit.tasks.episodes import episodes_of
from kit.tasks.explain import likeliest, token_text, top_words
from kit.tasks.prompted import answers_to, check_answer_keys, search_options
from kit.tasks.prompts import as_text, examples, parse_prompt
from kit.tasks.tables import sheet
from kit.world.draw import HELD_PAIRS

LIMIT_PICTURE = 32 << 20   # bytes of one picture or clip
LIMIT_PROMPT = 64 << 20    # bytes of a saved prompt, and of all that is in it
LIMIT_KEPT = 256 << 20     # bytes of pictures held for prompts to come; the oldest go first
LIMIT_TEXT = 1 << 20       # bytes of its text
LIMIT_NAME = 100           # characters
MOST_PICTURES = 200        # of a saved prompt
MOST_CHOICES = 100

KEYS = 'choices', 'calibrate', 'beam_size', 'temperature', 'top_k', 'max_new_tokens', 'seed'  # of sample.py
CONTROLS = ('blank_support', 'swap_support', 'shuffle_answers', 'text_only', 'blank_query')
KINDS = {  # of prompts: which task of the world draws one, and what stands before an answer
    'naming': ('naming', CAPTION_PROMPT),
    'caption': ('caption', CAPTION_PROMPT),
    'question': ('question', question_prompt('what color is it?')),
    'dialogue': ('dialogue', dialogue_prompt('a thing.', [('what color is it?', 'red')],
                                             'what shape is it?')),
    'clips': ('clip_caption', CAPTION_PROMPT),
}


class Desk:
    """asker: kit.tasks.asker.Asker; config: sample.py's keys, the defaults of what a request leaves out;
    checkpoint: its name, to be shown."""

    def __init__(self, asker, config, checkpoint=''):
        self.asker, self.config, self.checkpoint = asker, config, checkpoint
        self.kept = Kept(LIMIT_KEPT)  # {id: bytes of a picture}

    # -----------------------------------------------------------------------------------------
    # Routes. request: a dict that any stranger may have written; tell(event): sends an event at once.

    def start(self, request, tell):
        """What the page must know to begin with."""
        model = self.asker.model
        return {'checkpoint': self.checkpoint, 'parameters': sum(p.numel() for p in model.parameters()),
                'context': model.lm.n_context, 'image_size': model.config.image_size,
                'gates': model.gates(), 'keys': {name: getattr(self.config, name) for name in KEYS},
                'templates': {kind: text for kind, (_, text) in KINDS.items()},
                'ways': self.config.ways, 'shots': self.config.shots,
                'limits': {'picture': LIMIT_PICTURE, 'prompt': LIMIT_PROMPT}}

    def picture(self, content, name, tell):
        """The bytes of a picture or clip -> {"id", "frames"}"""
        check_name(name)
        if is_video(name):
            raise BadItem('a video', name, 'make an animated GIF, WebP or APNG of it')
        return self.keep(name, content)

    def draw(self, request, tell):
        """A picture or clip of the drawn world, or a whole prompt of a kind."""
        kind, seed = field(request, 'kind', str), field(request, 'seed', int, 0, 2 ** 53)
        if kind in ('picture', 'clip'):
            episode = episodes_of('caption' if kind == 'picture' else 'clip_caption', 0, 1, seed=seed)[0]
            return {'pictures': self.drawn([episode.query.media])}
        if kind not in KINDS:
            raise BadInput(f'kind: {kind[:20]!r} is none of {", ".join(KINDS)}')
        task, ways = KINDS[kind][0], field(request, 'ways', int, 1, len(HELD_PAIRS), self.config.ways)
        shots = field(request, 'shots', int, 1, 16, self.config.shots)
        sizes = (shots, 1, ways) if task == 'naming' else (shots, 1)
        episode = episodes_of(task, *sizes, seed=seed)[0]
        document = episode.document()
        return {'pictures': self.drawn(document.media),
                'truth': episode.query.answer, 'choices': ' | '.join(episode.choices or []),
                **taken_apart(as_text(document, drawn_name))}

    def parse(self, request, tell):
        """The text form of a prompt -> its cards. names: of the pictures that are there."""
        names = field(request, 'names', list)
        return taken_apart(field(request, 'prompt', str), names)

    def ask(self, request, tell):
        """Answers the prompt, and after that the spoilt one where something is to be spoilt. All is told."""
        config, (runs, names) = self.keys(request), self.runs(request)
        for run, document in runs.items():
            tell({'run': run, 'doing': 'reading the prompt'})
            self.answer(document, config, names, lambda event: tell({'run': run, **event}))
        return {'done': True}

    def lost(self, request, tell):
        """Of each word that sees one picture, what it loses where that is blanked: {its place: a PNG}, as
        sample.py --attention draws it. image: which picture, counted from 0; answer: what was said."""
        runs, _ = self.runs(request)
        run, answer = field(request, 'run', str), field(request, 'answer', str)
        if run not in runs:
            raise BadInput(f'run: one of {", ".join(runs)}')
        n_image = len(runs[run].media)
        image = field(request, 'image', int, 0, n_image - 1)
        ids, most = self.answer_ids(answer), self.asker.model.lm.n_context
        steps, _ = occlusion.words(self.asker, runs[run], ids, most, images=[image])
        maps = [sheets.heat(step['picture'], step['weights'], 224, step['top']) for step in steps]
        return {'maps': {step['place']: encoded(canvas.png(m)) for step, m in zip(steps, maps)}}

    def sheet(self, request, tell):
        """-> the PNG that sample.py saves as sample.png"""
        document, _ = self.document(request)
        self.asker.encode(document)  # raises BadInput where it is too long for a prompt, and so for a sheet
        answer, truth = field(request, 'answer', str), field(request, 'truth', str, default='')
        return canvas.png(sheet([('', document, {'prediction': answer, 'answer': truth or None})]))

    def save(self, request, tell):
        """-> one file, a .zip: unpacked, it is a prompt for sample.py --prompt_file=prompt/prompt.txt"""
        document, names = self.document(request)
        page = {name: request.get(name) for name in ('keys', 'controls', 'blank', 'kind', 'truth')}
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as file:  # stored as they are: pictures are compressed already
            file.writestr('prompt/prompt.txt', as_text(document, lambda m: f'prompt/pictures/{names[id(m)]}'))
            file.writestr('prompt/page.json', json.dumps(page, indent=1))
            for name, content in self.contents(request).items():
                file.writestr(f'prompt/pictures/{name}', bytes(content))
        return out.getvalue()

    def load(self, content, name, tell):
        """What `save` wrote -> its cards, its pictures, and the rest that the page had to save."""
        try:
            text, page, contents = unpacked(content)
        except Exception as e:  # a stranger's file makes zipfile raise nearly anything
            raise BadInput('not a prompt that this page has saved') from e
        return {'page': page, **taken_apart(text, list(contents)), 'pictures': self.held(contents)}

    # -----------------------------------------------------------------------------------------
    # Pictures

    def keep(self, name, content):
        """Bytes of a picture -> {"id", "frames": what the model sees of it}. Raises BadItem."""
        frames = self.asker.features.pixels(self.media(name, content))                # (F,3,H,W) uint8
        key = hashlib.sha256(content).hexdigest()
        if key not in self.kept:
            self.kept.keep(key, memoryview(content))
        shown = [canvas.png(Image.fromarray(frame.permute(1, 2, 0).numpy())) for frame in frames]
        return {'id': key, 'frames': [encoded(png) for png in shown]}

    def media(self, name, content):
        """The careful reader of every other picture, given bytes instead of a file."""
        return media_of(Inside(name, content=bytes(content)), self.asker.n_frame, fps=self.asker.fps)

    def drawn(self, media):
        """Pictures of the drawn world, as files that any program reads -> what `held` gives"""
        return self.held({drawn_name(m): animation(m.load()) for m in media})

    def held(self, contents):
        """{name: bytes} -> {name: {"id", "frames", "content"}}"""
        return {name: {**self.keep(name, content), 'content': encoded(content)}
                for name, content in contents.items()}

    def contents(self, request):
        """The pictures of a request -> {name: bytes}. Raises BadInput; Missing where one is not held any
        more."""
        pictures = field(request, 'pictures', dict)
        for name in pictures:
            check_name(name)
        gone = [name for name, key in pictures.items() if type(key) is not str or key not in self.kept]
        if gone:
            raise Missing(gone)
        return {name: self.kept[key] for name, key in pictures.items()}

    # -----------------------------------------------------------------------------------------
    # Prompts

    def document(self, request):
        """-> (Document, {id of a Media: its name}). Raises BadInput."""
        media = {name: self.media(name, content) for name, content in self.contents(request).items()}
        text = field(request, 'prompt', str)
        document = parse_prompt(text, 'the prompt', lambda path: media[named(path, media)])
        return document, {id(m): name for name, m in media.items()}

    def runs(self, request):
        """-> ({'before': the prompt as it is, 'after': spoilt, where that is wanted}, what `document` gives
        besides). Raises BadInput."""
        document, names = self.document(request)
        wanted, blank = (field(request, name, list, default=[]) for name in ('controls', 'blank'))
        if any(name not in CONTROLS for name in wanted):
            raise BadInput(f'controls: some of {", ".join(CONTROLS)}')
        if not wanted and not blank:
            return {'before': document}, names
        shown = [names[id(media)] for media in document.media]
        after = blanked(document, [n for n, name in enumerate(shown) if name in blank])
        after = spoilt(after, wanted, self.keys(request).seed) if wanted else after
        return {'before': document, 'after': after}, names

    def keys(self, request):
        """-> sample.py's keys, those of the request in place of their defaults. Raises BadInput."""
        given = field(request, 'keys', dict, default={})
        for name, value in given.items():
            if name not in KEYS or not isinstance(value, (int, float) if name != 'choices' else str):
                raise BadInput(f'keys: some of {", ".join(KEYS)}, choices a text and all others numbers')
        values = {name: value if name == 'choices' else parse(str(value), getattr(self.config, name), name)
                  for name, value in given.items()}
        config = SimpleNamespace(**vars(self.config) | values | {'num_samples': 1})
        check_answer_keys(config)
        if config.choices.count('|') >= MOST_CHOICES:
            raise BadInput(f'choices: more than {MOST_CHOICES}')
        return config

    def answer(self, document, config, names, tell):
        """One answer, told word by word, and what was seen at each word."""
        model, tokenizer = self.asker.model, self.asker.tokenizer

        def told(ids, log_p):
            written = [i for i in ids if i != model.eoc]
            tell({'draft': tokenizer.decode(written), 'likely': top_words(tokenizer, log_p.double().exp())})

        search = search_options(config, self.asker.features.device) | {'told': told}
        [(answer, said)] = answers_to(document, config, self.asker, search)
        if 'prompt' in said:
            said['prompt'] = as_text(document, lambda media: names.get(id(media), 'blank'))
        tell({'answer': answer, **said, 'cards': cards_of(document, names)})
        tell(self.seen(document, answer))

    def answer_ids(self, answer):
        return self.asker.tokenizer.encode(' ' + answer) if answer else []

    @torch.no_grad()
    def seen(self, document, answer):
        """Of a prompt and its answer: the words and where they look; of the answer's tokens the likeliest."""
        model, tokenizer = self.asker.model, self.asker.tokenizer
        prompts, n_prompt = attention.with_answer(self.asker, document, self.answer_ids(answer))
        pictures = dict(features=prompts['features'], frame_mask=prompts['frame_mask'])
        logits = forbid(model, model(prompts['tokens'], prompts['image_index'], **pictures)[0])
        ids = [*prompts['tokens'][0].tolist(), model.eoc]
        steps = likeliest(tokenizer, logits, ids, n_prompt)
        return {'tokens': n_prompt,
                'steps': [{'text': token_text(tokenizer, i), 'p': p, 'likely': likely}
                          for i, (p, likely) in zip(ids[n_prompt:], steps)],
                'words': [plain(look) for look in attention.looks(self.asker, prompts, n_prompt)
                          if look['word']]}


# ---------------------------------------------------------------------------------------------
# Requests


class Missing(BadInput):
    """Pictures that are not held any more: whoever has them sends them again."""

    def __init__(self, names):
        super().__init__('these pictures have to be sent again: ' + ', '.join(names))
        self.names = names


def field(request, name, kind, least=None, most=None, default=None):
    """One entry of a request, which any stranger may have written. Raises BadInput."""
    value = request.get(name, default)
    right = type(value) is kind and (least is None or least <= value <= most)
    right = right and (kind is not list or all(isinstance(x, str) for x in value))
    if not right:
        said = {str: 'a text', int: f'a whole number from {least} to {most}', list: 'a list of texts',
                dict: 'a table'}[kind]
        raise BadInput(f'{name}: must be {said}')
    return value


def check_name(name):
    """Raises BadInput where a picture cannot have this name: in a prompt's text and in a saved file it must
    be one name, and no way to a place."""
    if not re.fullmatch(r'[^<>|/\\:\x00-\x1f\x7f]+', name) or len(name) > LIMIT_NAME or name.startswith('.'):
        raise BadInput(f'{name[:LIMIT_NAME]!r}: not a name for a picture')


def named(path, names):
    """What a prompt calls a picture -> the name that it has here: the same, or its last part, since a prompt
    typed for sample.py has paths."""
    name = path if path in names else re.split(r'[/\\]', path)[-1]
    if name not in names:
        raise BadInput(f'the prompt: no picture here is called {path[:LIMIT_NAME]}; add it, or rename one')
    return name


# ---------------------------------------------------------------------------------------------
# Prompts


def taken_apart(text, names=None):
    """The text of a prompt -> {"cards": [{"picture": its name or null, "text"}]}. names: of the pictures
    that there are; None for those that it has."""
    def media(path):
        return Media(path if names is None else named(path, names), None)

    document = parse_prompt(text, 'the prompt', media)
    return {'cards': [{'picture': m and m.key, 'text': said} for m, said in examples(document)]}


def cards_of(document, names):
    """A prompt as it was asked -> [{"picture": its name, 'blank' or null, "text"}]"""
    return [{'picture': media and names.get(id(media), 'blank'), 'text': said}
            for media, said in examples(document)]


def plain(look):
    """A word of attention.looks -> plain numbers; weights in thousandths of all that it looks at"""
    weights = look['weights']
    if weights is not None:
        weights = (1000 * weights / weights.sum()).round().int().tolist()             # (F,S)
    return look | {'weights': weights}


# ---------------------------------------------------------------------------------------------
# Files


def encoded(content):
    return base64.b64encode(content).decode()


def drawn_name(media):
    """The file name of a picture of the drawn world: it says nothing of what it shows."""
    return media.key.replace('/', '-') + '.png'


def animation(frames):
    """One picture as PNG, several as APNG, one a second."""
    out = io.BytesIO()
    more = dict(save_all=True, append_images=frames[1:], duration=1000, loop=0) if len(frames) > 1 else {}
    frames[0].save(out, format='PNG', **more)
    return out.getvalue()


def unpacked(content):
    """A saved prompt -> (text, what else the page saved, {name: bytes}). Raises nearly anything where it is
    no such file."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [m for m in file.infolist() if not m.is_dir()]
        if len(members) > MOST_PICTURES + 2 or sum(m.file_size for m in members) > LIMIT_PROMPT:
            raise ValueError('too large')
        if file.getinfo('prompt/prompt.txt').file_size > LIMIT_TEXT:
            raise ValueError('too large')
        text = file.read('prompt/prompt.txt').decode()
        page = dict(json.loads(file.read('prompt/page.json')))
        contents = {}
        for member in members:
            folder, _, name = member.filename.rpartition('/')
            if folder == 'prompt/pictures':
                check_name(name)
                contents[name] = file.read(member)
    return text, page, contents
