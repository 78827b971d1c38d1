"""The rows of the paper's ablations (Tables 3 and 10, contrastive mixing), and of other systems: what
differs from the default in each, and what the paper measured.

A row changes keys of train.py, or takes another model (kit/variants.py), or trains what is frozen otherwise.
"""
import difflib
from dataclasses import dataclass, field, replace

from kit import variants
from kit.adapt import WAYS
from kit.files import BadInput
from kit.masked import MaskedSystem
from model import Flamingo

BASELINE = 70.7  # the paper's overall score, 3B at 4 shots: five tasks, each over the best before it
ENCODER = 45.6   # the encoder's zero-shot accuracy on ImageNet, both data sets, gradients accumulated


@dataclass(frozen=True)
class Row:
    """One row.

    table:      where it stands in the paper
    paper:      its score there, of which BASELINE (or ENCODER) is the default's; None where it has none
    says:       what differs, in a few words
    keys:       of train.py, those of tables by their own names
    model:      a Flamingo
    language, vision: 'frozen'; or trained with the rest, from 'random' weights or from 'pretrained' ones
    encoder:    'nfnet' or 'vit'
    new_vision: the vision stage is trained for this row, too
    text:       co-training on plain text
    stage:      the last stage that it trains: 'flamingo'; 'vision', where it is about the contrastive stage;
                'finetune'
    parameters: the paper's, at 3B
    tuned:      of fine-tuning on the examples of one task: (task, way, number of examples)
    more:       how many times the default's steps it takes, to read as many sequences
    """
    name: str
    table: str
    paper: float | None
    says: str
    keys: dict = field(default_factory=dict)
    model: type = Flamingo
    language: str = 'frozen'
    vision: str = 'frozen'
    encoder: str = 'nfnet'
    new_vision: bool = False
    text: bool = False
    stage: str = 'flamingo'
    parameters: float | None = None
    tuned: tuple = ()
    more: float = 1.0

    @property
    def base(self):
        """The name and the score of the row that it is compared with."""
        return ('contrastive', ENCODER) if self.stage == 'vision' else ('baseline', BASELINE)


# In this order they are trained: the baseline and the most telling ones first.
ROWS = [
    Row('baseline', '3', BASELINE, 'the default'),
    Row('no_tanh', '3 (iii)', 66.5, 'no gates: all of a new layer is added from the start',
        model=variants.NoTanhGate),
    Row('vanilla', '3 (iv)', 66.9, 'VANILLA XATTN: cross-attention inside each block, no new feed-forward',
        model=variants.VanillaXattn, parameters=2.4e9),
    Row('grafting', '3 (iv)', 63.1, 'GRAFTING: new layers on top of the untouched language model',
        model=variants.Grafting, parameters=3.3e9),
    Row('all_previous', '10 (ii)', 63.5, 'text sees all pictures before it, not the last alone',
        dict(attend='all_previous')),
    Row('no_pages', '3 (i)', 53.4, 'no interleaved pages', dict(m3w='')),
    Row('no_pairs', '3 (i)', 60.9, 'no pictures with captions', dict(align='', ltip='')),
    Row('round_robin', '3 (ii)', 62.9, 'one source a step, in turn', dict(mixing='round_robin')),
    Row('mlp', '3 (vi)', 66.6, 'an MLP for a resampler', model=variants.MLPInstead),
    Row('transformer', '3 (vi)', 66.7, 'a Transformer for a resampler', model=variants.TransformerInstead),
    Row('lm_random', '3 (viii)', 57.8, 'the language model trained with the rest, from random weights',
        language='random'),
    Row('lm_pretrained', '3 (viii)', 62.7, 'the language model trained with the rest, from pretrained ones',
        language='pretrained'),
    Row('one_middle', '3 (v)', 59.8, 'one gated layer, in the middle', model=variants.OneInTheMiddle,
        parameters=2.0e9),
    Row('every_2nd', '3 (v)', 68.2, 'a gated layer before every 2nd block', dict(xattn_every=2),
        parameters=2.6e9),
    Row('every_4th', '3 (v)', 68.8, 'a gated layer before every 4th block', dict(xattn_every=4),
        parameters=2.3e9),
    Row('one_stream', 'Frozen', None, 'visual tokens among the words, no gated layers; as many trained '
        'parameters', model=variants.OneStream),
    # Its rows of the batch stay apart, as with all_previous: nothing would hide their texts from each other.
    Row('masked', 'a summary', None, 'one bidirectional stream, words and patches masked, end to end',
        dict(attend='all_previous'), model=MaskedSystem),
    Row('no_clips', '3 (i)', 67.3, 'no clips', dict(vtp='')),
    # Its five scores stand in the paper's first version only; their mean is taken as the others' are.
    Row('pages_only', '3 (i)', 55.0, 'interleaved pages alone', dict(align='', ltip='', vtp='')),
    Row('merged', '3 (ii)', None, 'one batch of all sources, without λ', dict(mixing='merged')),
    Row('small_encoder', '3 (vii)', 62.7, 'a smaller encoder', dict(vision='half'), new_vision=True),
    Row('vit', '3 (vii)', 64.9, 'a ViT for an encoder', dict(vision_lr=1e-3), encoder='vit', new_vision=True),
    Row('resampler_small', '10 (i)', 67.9, 'half the resampler', parameters=3.1e9),
    Row('resampler_large', '10 (i)', 69.0, 'twice the resampler', parameters=3.4e9),
    Row('p_next_0', '10 (iii)', 69.6, "a page's text always sees the previous picture", dict(p_next=0.0)),
    Row('p_next_1', '10 (iii)', 70.4, "a page's text always sees the next picture", dict(p_next=1.0)),
    Row('vision_random', '10 (v)', 61.4, 'the encoder trained with the rest, from random weights',
        vision='random'),
    Row('vision_pretrained', '10 (v)', 68.1, 'the encoder trained with the rest, from pretrained weights',
        vision='pretrained'),
    Row('text_random', '10 (vi)', 55.9, 'trained on plain text, too, the language model from random weights',
        language='random', text=True),
    Row('text_pretrained', '10 (vi)', 68.6, 'the same from pretrained weights, its learning rate a tenth',
        language='pretrained', text=True),
    Row('contrastive', 'mixing', ENCODER, 'the contrastive stage, gradients of both sources accumulated',
        stage='vision'),
    Row('contrastive_ltip', 'mixing', 40.8, 'the contrastive stage on long captions alone', dict(align=''),
        stage='vision'),
    Row('contrastive_align', 'mixing', 35.2, 'the contrastive stage on short captions alone', dict(ltip=''),
        stage='vision'),
    Row('contrastive_merged', 'mixing', 38.6, 'the contrastive stage, one batch of both',
        dict(mixing='merged'), stage='vision'),
    Row('contrastive_round_robin', 'mixing', 41.2, 'the contrastive stage, sources in turn',
        dict(mixing='round_robin'), stage='vision'),
]
# Table 2 in miniature: fine-tuning against prompting, on two tasks that no stage has trained.
TUNING = [Row(f'{task}_{way}_{n}', '2', None, f'{n} examples of {task}: {way}', stage='finetune',
              tuned=(task, way, n))
          for task in ('statement', 'dialogue') for n in (4, 16, 64, 256) for way in ('prompting', *WAYS)]
SEQUENCES = {'m3w': 'batch_m3w', 'align': 'batch_align', 'ltip': 'batch_ltip', 'vtp': 'batch_vtp'}


def sizes_of(row, config):
    """The keys of a row that depend on the sizes of the rest (config: namespace or FlamingoConfig) -> a dict.
    Raises BadInput where the row does not fit them."""
    c, keys = config, dict(row.keys)
    if row.name == 'resampler_large':
        keys['resampler_layer'] = 2 * c.resampler_layer
    if row.name == 'resampler_small':
        keys['resampler_layer'] = max(1, c.resampler_layer // 2)
        if c.resampler_layer == 1:  # of one layer three quarters of the width, about half of the parameters
            keys |= {'resampler_dim': 3 * c.resampler_dim // 4, 'visual_dim': c.visual_dim or c.resampler_dim}
    if keys.get('xattn_every', 1) > c.lm_layer or row.name == 'one_middle' and c.lm_layer < 2:
        raise unfit(row, f'the language model has {c.lm_layer} blocks')
    if keys.get('xattn_every', c.xattn_every + 1) == c.xattn_every:
        raise unfit(row, f'the default has a gated layer before every block number {c.xattn_every}, too')
    if row.encoder == 'vit' and c.image_size % 8:
        raise unfit(row, f'pictures of {c.image_size} pixels are no whole number of patches of 8')
    if row.name == 'small_encoder' and c.vision not in ('nano', 'F6', 'F5', 'F4', 'F3', 'F2', 'F1'):
        raise unfit(row, f'there is no encoder smaller than {c.vision}')
    if row.name == 'small_encoder' and c.vision != 'nano':
        keys['vision'] = 'F0'  # the paper's row
    if row.model is variants.OneStream:  # the gated layers' parameters go to the resampler
        one = 2 * c.xattn_head * c.xattn_head_dim * (c.lm_dim + (c.visual_dim or c.resampler_dim))
        gated = len(range(0, c.lm_layer, c.xattn_every)) * (one + 8 * c.lm_dim ** 2)
        layer = 4 * c.resampler_dim * c.resampler_head * c.resampler_head_dim + 8 * c.resampler_dim ** 2
        keys['resampler_layer'] = c.resampler_layer + round(gated / layer)
    return keys


def fitting(rows, config):
    """-> ([Row] that fit these sizes, [BadInput] that say of each of the others why it does not)"""
    fit, reasons = [], []
    for row in rows:
        try:
            sizes_of(row, config)
            fit.append(row)
        except BadInput as e:
            reasons.append(e)
    return fit, reasons


def unfit(row, why):
    return BadInput(f'--rows={row.name}: does not fit these sizes: {why}')


def all_rows(config):
    """ROWS, and after each that reads fewer sequences a step than the default one that makes up for it by
    more steps. config: namespace of train.py's keys, the default's."""
    rows = []
    for row in ROWS:
        rows.append(row)
        share = sequences(row, config) / sequences(replace(row, keys={}), config)
        if share < 1:
            rows.append(replace(row, name=row.name + '_longer', more=1 / share,
                                says=row.says + '; as many sequences as the default'))
    return rows


def sequences(row, config):
    """How many sequences a step of a row reads, on average."""
    value = lambda key: row.keys.get(key, getattr(config, key))
    if row.stage == 'vision':
        count = [config.vision_batch for source in ('align', 'ltip') if value(source)]
    else:
        count = [value(batch) for source, batch in SEQUENCES.items() if value(source)]
    return sum(count) / (len(count) if value('mixing') == 'round_robin' else 1)


def chosen(text, config):
    """'baseline,vanilla' -> [Row], in the order of ROWS; 'all' -> all of them; 'tuning' -> TUNING. Raises
    BadInput that names the nearest."""
    groups = {'all': all_rows(config), 'tuning': TUNING}
    if text in groups:
        return groups[text]
    rows = groups['all'] + groups['tuning']
    names = [row.name for row in rows]
    wanted = [name.strip() for name in text.split(',') if name.strip()]
    for name in wanted:
        if name not in names:
            [nearest] = difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise BadInput(f'--rows={text}: no row {name!r}; did you mean {nearest!r}?')
    return [row for row in rows if row.name in wanted]
