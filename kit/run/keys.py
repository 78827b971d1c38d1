"""Keys of train.py, all but steps and weights of losses; checks of all; what replaced those that are gone.

Keys that belong together are given as one (see kit/cli.py): `--folders='words=2 ways=8'`.
"""
from dataclasses import fields

from kit.adapt import WAYS
from kit.cli import check_range, flat, spell
from kit.files import BadInput
from kit.world.words import SYLLABLES
from model import PRESETS, FlamingoConfig
from vision import SIZES as ENCODERS
from xattn import SEES

SOURCES = ('m3w', 'align', 'ltip', 'vtp')
SCHEDULES = ('cosine', 'linear', 'trapezoid', 'constant')

FOLDERS = {  # how folders of pictures are read, and the pages and texts made of them
    'fit': (False, 'choose what is not given by what the folder of align holds; see config/pictures.py'),
    'class_depth': (0, 'number of folder names that make a class: 2 for alphabet/character; 0: all of them'),
    'rotate': (False, 'also turn pictures by 90, 180 and 270 degrees; each turn of a class is a class'),
    'held_share': (0.0, 'share of the things that training never sees, chosen by what they are called, '
                        'where a folder has no split of its own to ask about'),
    'held_groups': ('', 'folders of class folders, with commas between them: training never sees them, '
                        'evaluation asks about them'),
    'words': (0, 'after the vision stage, made-up words of this many syllables replace class names: '
                 'what looks alike shares syllables; 0: none'),
    'keep_captions': (False, 'the words stand beside the class names or captions, and do not replace them'),
    'word_centres': (32, 'number of syllables to choose from, for each place in a word'),
    'random_text': (0.1, 'share of the text of the language stage that is random tokens, again and again, so '
                          'that all are known'),
    'naming': (0.6, 'share of naming pages among the pages'),
    'page_examples': (12, 'most examples on a page; pages have at least half as many; at most n_image'),
    'page_variants': (4, 'variants of each picture on a page, turned, scaled and shifted a little; '
                         '1: unchanged'),
    'ways': (5, 'most names on a naming page'),
    'mirrored': (0.0, 'share of the names on naming pages whose pictures are all mirrored: things that the '
                      'encoder has never seen, as those that will be asked about'),
    'within_group': (0.0, 'share of naming pages whose classes all come from one parent folder'),
    'captions_first': (0, 'this many pages have only captions before naming pages begin'),
    'ways_rise': (0, 'number of pages over which the most names on a page grow from two'),
}
AUGMENT = {  # in the contrastive stage
    'augment_strength': (0.0, 'of geometric and colour augmentation; 0: none'),
    'augment_colour': (True, 'also change colours; off for pictures without any'),
    'augment_warp': (0.0, 'how much to slant, stretch and bend as well, as two people draw the same thing'),
    'augment_lines': (0.0, 'share of the pictures to trace: only their outlines, or these on faded colours'),
    'augment_flip': (False, 'mirror pictures at random; off if left and right or letters mean something'),
    'augment_word_dropout': (0.0, 'share of the tokens left out of a caption, different ones each time'),
}
SCHEDULE = {
    'schedule_vision': ('cosine', 'the paper: linear'),
    'schedule_language': ('cosine', 'the paper took a trained language model'),
    'schedule_flamingo': ('trapezoid', 'constant for 70 % of the steps, then linear to zero; '
                                       'the paper: constant'),
}
FIELDS = {f.name: f.default for f in fields(FlamingoConfig)}
OWN_SIZES = {  # sizes with a key of their own
    'lm_layer': 'blocks of the language model',
    'lm_dim': 'its width',
    'n_context': 'its longest sequence, tokens',
    'xattn_every': 'a gated layer before every k-th block',
    'attend': f'the images that a token sees: {", ".join(SEES)}',
    'n_latent': 'R, visual tokens an image',
    'n_frame': 'F, most frames of a clip in training',
    'vision': 'the encoder: nano, F0 ... F6',
    'image_size': 'pixels, height and width',
    'n_token': 'L, most tokens of a training sequence',
    'n_image': 'N, most images of a training sequence',
}
SIZES = {name: (default, 'see model.FlamingoConfig') for name, default in FIELDS.items()
         if name not in (*OWN_SIZES, 'n_vocab', 'bos', 'pad')}  # those three come from the tokenizer

FIRST = {
    'What to train': {
        'stage': ('all', 'all, vision, language, flamingo or finetune'),
        'out_dir': ('out', 'folder for everything the run writes'),
        'init_from': ('auto', 'auto: continue, or fill in; scratch: start over; resume: continue, or fail'),
        'preset': ('nano', f'sizes of everything: {", ".join(PRESETS)}'),
        'seed': (0, 'of weights and data; the same seed gives the same run on the same CPU'),
    },
    "What to learn from ('shapes', the drawn world; a path; 'path:weight,path:weight'; empty for none)": {
        'm3w': ('shapes', "interleaved pages; --m3w=align makes pages of the pictures of align"),
        'align': ('shapes', 'pictures with short, noisy captions'),
        'ltip': ('shapes', 'pictures with long captions'),
        'vtp': ('shapes', 'clips with captions'),
        'text': ('shapes', 'plain text for the language stage'),
    },
}
RARE = {
    'Where and how it runs': {
        'device': ('auto', 'auto, cpu, cuda, cuda:1, mps'),
        'dtype': ('auto', 'of matrix products and, on a GPU, frozen weights: auto, float32 or bfloat16'),
        'compile': (False, 'torch.compile the networks'),
        'shard': (False, 'split weights and optimizer over the processes of torchrun (FSDP), for models '
                         'that do not fit on one GPU'),
        'activation_checkpointing': (False, 'keep only the input of each block and compute the rest again: '
                                            'less memory, a third more work'),
        'micro_batches': (1, 'split each batch into this many parts and add up their gradients; not in the '
                             'contrastive stage, whose batch is compared with itself'),
        'workers': (0, 'processes that read and decode the next steps while the model computes; '
                       'for large pictures'),
        'max_minutes': (0.0, 'stop after this many minutes, saved and ready to continue; 0: no limit'),
    },
    'Published weights and words': {
        'gpt2': ('', "GPT-2's published weights, from which the language stage starts "
                     '(language_iters=0: take them as they are)'),
        'nfnet': ('', "timm's published dm_nfnet weights, from which the vision stage starts "
                      '(vision_iters=0: take them as they are)'),
        'tokenizer': ('assets/tokenizer.tiktoken', "a tiktoken file; a folder with GPT-2's vocab.json and "
                      "merges.txt, or its tokenizer.json; 'gpt2' if tiktoken has it in its cache; 'sources', "
                      "or 'sources:4096' for that many tokens, to train one on the captions of the sources"),
    },
    'Folders of pictures': {
        'images': ('', 'folder of the pictures that a list of captions or pages names, if they are not '
                       'beside the list'),
        'folders': (FOLDERS, 'how they are read, and what is made of them: keys, pages, texts'),
        'augment': (AUGMENT, 'augmentation in the contrastive stage'),
    },
    'Schedules, fine-tuning': {
        'schedule': (SCHEDULE, f'of the learning rate, times warm-up: {", ".join(SCHEDULES)}'),
        'adapt': ('all', f'what fine-tuning trains: {", ".join(WAYS)} (kit/adapt.py)'),
        'finetune_iters': (200, 'steps of fine-tuning'),
        'finetune_lr': (1e-4, 'its peak learning rate (the paper, for much larger models: 3e-8 to 1e-5); '
                              'times 10 for adapter, 30 for bitfit, 300 for prompt'),
    },
    'Watching it': {
        'log_every': (10, 'steps between rows of log.csv'),
        'eval_every': (120, 'steps between evaluations; each also saves a checkpoint'),
        'eval_n': (48, 'episodes of each kind in an evaluation'),
        'test_n': (150, 'episodes of each kind in the final table'),
    },
    'Sizes (set by the preset unless given)': {
        **{name: (FIELDS[name], meaning) for name, meaning in OWN_SIZES.items()},
        'sizes': (SIZES, 'all the others'),
    },
}
GONE = {
    'tokenizer_ranks': '--tokenizer=sources:4096 says how many tokens',
    'warp': '--augment=warp=1', 'flip': '--augment=flip=True',
    'word_dropout': '--augment=word_dropout=0.3',
    'flamingo_schedule': '--schedule=flamingo=constant',
    'agc': "adaptive gradient clipping is at the NFNet paper's 0.01",
    'blind_loss': 'text that sees no picture is always learned',
}

# ---------------------------------------------------------------------------------------------
# Values of the right type that make no sense: choices, ranges

CHOICES = {'stage': ('all', 'vision', 'language', 'flamingo', 'finetune'),
           'init_from': ('auto', 'scratch', 'resume'), 'mixing': ('accumulate', 'round_robin', 'merged'),
           'adapt': WAYS, 'preset': PRESETS, 'vision': ENCODERS, 'attend': SEES,
           **dict.fromkeys(SCHEDULE, SCHEDULES)}
RANGES = {'seed': (0, 2 ** 63 - 1), 'eval_n': (1, 100_000), 'test_n': (1, 100_000), 'ways': (2, 100),
          'page_examples': (3, 100), 'p_next': (0, 1), 'naming': (0, 1), 'within_group': (0, 1),
          'random_text': (0, 0.9), 'held_share': (0, 0.9), 'mirrored': (0, 1),
          'feature_dropout': (0, 0.99), 'augment_word_dropout': (0, 0.99), 'augment_lines': (0, 1)}
MAY_BE_0 = ('warmup', 'text_layer', 'visual_dim', 'workers', 'words', 'class_depth', 'captions_first',
            'ways_rise')  # other whole numbers are at least 1
LARGEST_BATCH = 16_384  # the paper's


def check_values(config, keys):
    """Raises BadInput if a value of config makes no sense. keys: train.KEYS; config: a namespace of them all,
    those of tables by their own names."""
    for key, allowed in CHOICES.items():
        if getattr(config, key) not in allowed:
            [said], [*rest, last] = spell({key: getattr(config, key)}, keys), allowed
            raise BadInput(f'{said}: expected {", ".join(rest)} or {last}')
    if not config.out_dir:
        raise BadInput('--out_dir=: must name a folder')
    if config.words * config.word_centres > len(SYLLABLES):
        raise BadInput(f'--folders=words={config.words} word_centres={config.word_centres}: '
                       f'there are {len(SYLLABLES)} syllables, and each place in a word has its own')
    for key, (default, _) in flat(keys).items():
        if type(default) in (int, float):
            untouched = key == 'language_iters' and config.gpt2 or key == 'vision_iters' and config.nfnet
            least = 1 if type(default) is int and key not in MAY_BE_0 and not untouched else 0
            most = LARGEST_BATCH if 'batch' in key else float('inf')
            check_range(config, *RANGES.get(key, (least, most)), key, keys=keys)
