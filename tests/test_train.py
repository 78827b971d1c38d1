"""What train.py computes, piece by piece."""
import json
import math
import pickle
import types
from functools import partial

import pytest
import torch
from PIL import Image

import train
from gates import open_gates
from data import collate, Document, encode, Media
from kit.cli import configure
from kit.features import drop_channels
from kit.files import BadInput, BadItem
from kit.run import checks
from kit.run.ahead import Ahead, look_ahead
from kit.run.batches import PairData, TextData
from kit.run.keys import check_values
from kit.run.loop import OUT_OF_TIME
from kit.run.parts import in_parts, is_one_part
from kit.run.run import Run
from kit.weights import checkpoint
from kit.world.draw import clip_media, picture_media
from rounding import EPS, assert_near


def small_run(tmp_path, *arguments):
    config = configure(train.KEYS, [
        f'--out_dir={tmp_path}', '--device=cpu', '--dtype=float32', '--batch=m3w=2 align=2 ltip=2 vtp=2',
        '--vision_batch=4', '--eval_n=2', *arguments])
    check_values(config, train.KEYS)
    return Run(config, train.KEYS)


@pytest.fixture()
def flamingo_stage(tmp_path):
    run = small_run(tmp_path)
    torch.manual_seed(0)
    run.save_stage(train.VisionStage(run))
    run.save_stage(train.LanguageStage(run))
    stage = train.FlamingoStage(run)
    for layer in stage.module.gated:  # open the gates, or most gradients are zero
        open_gates(layer, 0.46, 0.46)
    return stage


@pytest.fixture()
def exact_stage(flamingo_stage):
    """The same in float64. Only the losses, from the logits on, are still float32."""
    pictures = flamingo_stage.pictures
    flamingo_stage.module.double()
    flamingo_stage.pictures = lambda batch: {k: v.double() if v.is_floating_point() else v
                                            for k, v in pictures(batch).items()}
    return flamingo_stage


def gradient(stage, names):
    stage.optimizer.zero_grad()
    losses, _ = train.gradients(stage.run, stage, stage.data.read(names, 0), stage.lambdas)
    return losses, [p.grad.clone() for p in stage.module.parameters() if p.requires_grad]


def test_accumulation_is_the_weighted_sum_of_gradients(exact_stage):
    """One pass over all sources, several sequences in a row, adds up to Σ λ_m ∇L_m (§2.4), L_m from each
    sequence by itself."""
    stage, n = exact_stage, 0
    lambdas = stage.lambdas
    assert lambdas == {'m3w': 1.0, 'align': 0.01, 'ltip': 0.03, 'vtp': 0.03}
    losses, together = gradient(stage, list(lambdas))
    stage.optimizer.zero_grad()
    for name, weight in lambdas.items():
        sequences, loss = stage.data.of_source(name, 0), 0.0
        for s in sequences:
            batch = collate([s], stage.run.tokenizer)
            mean = stage.module(batch.tokens, batch.image_index, targets=batch.targets,
                                position=batch.position,
                                **stage.pictures(batch))[1]
            loss = loss + mean / len(sequences)
        n_target = sum(s.n_target for s in sequences)
        # A sum of this many float32 losses.
        assert losses[name] == pytest.approx(loss.item(), rel=n_target * EPS)
        (weight * loss).backward()
        n += n_target
    alone = [p.grad for p in stage.module.parameters() if p.requires_grad]
    # The weight of each target is float32, off by 4 ε. Targets may cancel: their sum is then as small as a
    # random walk's, √n times one instead of n times.
    share = 4 * n ** 0.5 * EPS
    for a, b in zip(together, alone, strict=True):
        assert_near(a, b, share / torch.finfo(torch.float64).eps)


def test_one_part_is_the_whole(exact_stage):
    stage, names = exact_stage, list(exact_stage.lambdas)
    samples = stage.data.read(names, 0)
    assert is_one_part(stage, samples)
    losses, whole = gradient(stage, names)
    stage.optimizer.zero_grad()
    again, _ = in_parts(train.gradients, stage.run, stage, samples)
    assert again == losses
    assert all(map(torch.equal, whole, (p.grad for p in stage.module.parameters() if p.requires_grad)))


def test_in_turns_no_source_passes_over_any_of_its_batches(flamingo_stage):
    stage, asked = flamingo_stage, []
    stage.data.of_source = lambda source, i: i
    read, stage.data.parts = stage.data.read, lambda samples: []
    stage.data.read = lambda sources, i: asked.append(read(sources, i)) or asked[-1]
    stage.n_iter, stage.clip, stage.evaluate = 7, lambda: torch.tensor(0.0), lambda: {}
    in_turns = [{'m3w': 0}, {'align': 0}, {'ltip': 0}, {'vtp': 0}, {'m3w': 1}, {'align': 1}, {'ltip': 1}]
    together = [dict.fromkeys(('m3w', 'align', 'ltip', 'vtp'), i) for i in range(7)]
    for mixing, expected in (('round_robin', in_turns), ('accumulate', together)):
        stage.mixing = mixing
        asked.clear()
        assert train.train_stage(stage.run, stage) and asked == expected


def test_fine_tuning_mixes_its_sources_as_training_does(flamingo_stage):
    stage, asked = flamingo_stage, []
    stage.data.of_source = lambda source, i: i
    read, stage.data.parts = stage.data.read, lambda samples: []
    stage.data.read = lambda sources, i: asked.append(read(sources, i)) or asked[-1]
    stage.name, stage.n_iter = 'finetune', 5
    stage.clip, stage.evaluate = lambda: torch.tensor(0.0), lambda: {}
    stage.mixing = 'round_robin'
    assert train.train_stage(stage.run, stage)
    assert asked == [{'m3w': 0}, {'align': 0}, {'ltip': 0}, {'vtp': 0}, {'m3w': 1}]


def test_merged_sources_count_as_one(exact_stage):
    """The mean over all sequences, whichever source they come from, and no λ."""
    stage, names = exact_stage, list(exact_stage.lambdas)
    apart, _ = gradient(stage, names)
    counts = {name: len(stage.data.of_source(name, 0)) for name in names}
    stage.config.mixing = stage.mixing = 'merged'
    stage.set_lambdas(stage.lambdas, 'there are four')
    losses, together = gradient(stage, names)
    stage.optimizer.zero_grad()
    sequences = [s for name in names for s in stage.data.of_source(name, 0)]
    n, n_target, expected = len(sequences), sum(s.n_target for s in sequences), 0.0
    for s in sequences:
        batch = collate([s], stage.run.tokenizer)
        mean = stage.module(batch.tokens, batch.image_index, targets=batch.targets, position=batch.position,
                            **stage.pictures(batch))[1]
        (mean / n).backward()
        expected += mean.item() / n
    # Said of each source, as always; together they are the mean over all. A sum of this many float32 losses.
    assert losses == apart
    mean = sum(losses[name] * counts[name] for name in names) / n
    assert mean == pytest.approx(expected, rel=n_target * EPS)
    alone = [p.grad for p in stage.module.parameters() if p.requires_grad]
    share = 4 * n_target ** 0.5 * EPS  # as above
    for a, b in zip(together, alone, strict=True):
        assert_near(a, b, share / torch.finfo(torch.float64).eps)


@pytest.mark.parametrize('arguments, sources',
                         [(['--lambda_align=0'], ['m3w', 'ltip', 'vtp']),
                          (['--vtp='], ['m3w', 'align', 'ltip'])])
def test_lambda_weighs_the_flamingo_stage_only(tmp_path, arguments, sources):
    """A source of weight zero is not read there; the contrastive stage learns from it as from any other."""
    run = small_run(tmp_path, *arguments)
    run.save_stage(train.VisionStage(run))
    run.save_stage(train.LanguageStage(run))
    assert train.VisionStage(run).lambdas == {'align': 1.0, 'ltip': 1.0}
    assert list(train.FlamingoStage(run).lambdas) == sources
    with pytest.raises(BadInput, match='nothing to learn from'):
        train.FlamingoStage(small_run(tmp_path,
                                      *(f'--lambda_{name}=0' for name in ('m3w', 'align', 'ltip', 'vtp'))))


def test_a_stage_file_serves_other_sizes_than_it_was_built_from(tmp_path):
    """The encoder and the language model do not know how many latents look through them; fine-tuning may
    show larger pictures."""
    run = small_run(tmp_path)
    for stage in (train.VisionStage, train.LanguageStage, train.FlamingoStage):
        run.save_stage(stage(run))
    assert train.FlamingoStage(small_run(tmp_path, '--n_latent=16',
                                         '--sizes=resampler_layer=1')).module.config.n_latent == 16
    assert train.FinetuneStage(small_run(tmp_path, '--image_size=96')).run.model_config.image_size == 96
    with pytest.raises(BadInput, match='flamingo.pt was made with .*n_latent=8; now .*n_latent=16'):
        train.FinetuneStage(small_run(tmp_path, '--n_latent=16'))
    with pytest.raises(BadInput, match='language.pt was made with .*lm_layer'):
        train.FlamingoStage(small_run(tmp_path, '--lm_layer=2'))


def test_a_batch_without_any_picture_is_learned_from(flamingo_stage, monkeypatch):
    """As when windows of long pages were all cut after their picture. Every trained weight has a gradient,
    if of zero."""
    stage = flamingo_stage
    def page():
        sequence = encode(Document(['A square is red.'], 'page'), stage.run.tokenizer)
        sequence.source = 'm3w'
        return sequence

    monkeypatch.setattr(stage.data, 'of_source', lambda name, i: [page(), page()])
    losses, together = gradient(stage, ['m3w'])
    assert math.isfinite(losses['m3w']) and losses['m3w'] > 0 and any(g.any() for g in together)


def test_questions_are_asked_without_dropout_or_stochastic_depth(flamingo_stage, monkeypatch):
    stage, modes = flamingo_stage, []
    stage.module.freeze(vision=False)  # as fine-tuning does: its encoder trains
    stage.module.train()
    assert stage.module.vision.training
    monkeypatch.setattr(checks, 'measure',
                        lambda *a, **k: (modes.append([m.training for m in stage.module.modules()]),
                                         [{'value': 1.0}])[1])
    stage.evaluate()
    assert modes and not any(map(any, modes)) and stage.module.vision.training


def test_a_step_changes_what_is_trained_and_nothing_else(flamingo_stage):
    before = {n: p.clone() for n, p in flamingo_stage.module.named_parameters()}
    gradient(flamingo_stage, ['m3w'])
    flamingo_stage.optimizer.step()
    for name, p in flamingo_stage.module.named_parameters():
        frozen = name.startswith(('vision.', 'lm.'))
        assert torch.equal(p, before[name]) == frozen, name


def test_weight_decay_spares_the_resampler_gates_norms_and_new_rows(flamingo_stage):
    decayed = {id(p) for g in flamingo_stage.optimizer.param_groups if g['weight_decay'] for p in g['params']}
    for name, p in flamingo_stage.module.named_parameters():
        if p.requires_grad:
            assert (id(p) in decayed) == (name.startswith('gated.') and p.ndim == 2), name


def test_gates_learn_faster_and_are_one_group(flamingo_stage):
    [gates] = [g for g in flamingo_stage.optimizer.param_groups if g['scale'] != 1.0]
    assert len(gates['params']) == 2 * len(flamingo_stage.module.gated) and gates['scale'] == 15.0


def test_channels_left_out_are_those_of_the_seed(flamingo_stage):
    """A channel is missing from a picture everywhere or nowhere, others in each picture; the rest stays as
    the model would see it, each place at unit variance; a share of 0 leaves the features alone."""
    pages = [[clip_media('train', 0), picture_media('train', 1)], [picture_media('train', 1)]]
    batch = collate([encode(Document(page), flamingo_stage.run.tokenizer) for page in pages],
                    flamingo_stage.run.tokenizer)
    for s, seed in zip(batch.sequences, (5, 6)):
        s.seed = seed
    whole, mask = flamingo_stage.features(batch.media)
    seen, same_seed = (drop_channels(whole, mask, batch.sequences, 0.25) for _ in range(2))
    kept = seen != 0
    clip, same, again = kept.split([8, 1, 1])                                      # (F,S,D_v) each
    clip = clip.flatten(0, 1)                                                      # (F*S,D_v)
    assert torch.equal(clip.any(0), clip.all(0))
    assert clip[0].float().mean().item() == pytest.approx(0.75, abs=0.08)
    unit = (whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(seen[kept], unit[kept])
    assert torch.equal(seen, same_seed)
    assert not torch.equal(same, again)                                            # another page
    assert torch.equal(drop_channels(whole, mask, batch.sequences, 0.0), whole)


@pytest.mark.parametrize('kind, expected', [('constant', [0.5, 1, 1, 1]), ('linear', [0.5, 0.75, 0.5, 0.25]),
                                            ('cosine', [0.5, 0.853553, 0.5, 0.146447]),
                                            ('trapezoid', [0.5, 1, 1, 0.833333])])
def test_schedule(kind, expected):
    """Two steps of warm-up out of four; the first is not zero, or it would be wasted."""
    assert [train.schedule(kind, i, 2, 4) for i in range(4)] == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_the_same_whenever_it_is_asked_for(tmp_path):
    a, b = ((lambda i, data=TextData(small_run(tmp_path)): data.of_source('text', i)) for _ in range(2))
    later = b(5)
    assert a(5) == later == b(5) and a(4) != a(5)


def documents_of(run, n):
    return [run.reader.document('align', k) for k in range(n)]


def test_a_share_of_the_text_may_be_random_tokens_again_and_again(tmp_path):
    """Every piece of the tokenizer is read and said, also those that no text of the world contains."""
    run = small_run(tmp_path, '--folders=random_text=0.1')
    data = TextData(run)
    texts = [data.text('text', number) for number in range(3000)]
    assert texts[:50] == [TextData(run).text('text', number) for number in range(50)]
    others = {number for number, text in enumerate(texts)
              if text != run.tokenizer.encode(run.reader.text('text', number))}
    assert 0.08 < len(others) / len(texts) < 0.12
    seen = set()
    for number in others:
        text = texts[number]
        assert any(text == text[:n] * (len(text) // n) and len(text) // n in (2, 3, 4) for n in range(4, 17))
        seen.update(text)
    usual = {token for number, text in enumerate(texts) if number not in others for token in text}
    assert seen <= run.tokenizer.text_ids
    plain = TextData(small_run(tmp_path / 'plain', '--folders=random_text=0'))
    assert all(plain.text('text', n) == run.tokenizer.encode(run.reader.text('text', n)) for n in range(99))
    missing = run.tokenizer.text_ids - usual
    assert missing and len(missing - seen) < len(missing) / 4


def test_bad_pictures_are_replaced_and_counted(tmp_path):
    run = small_run(tmp_path)
    good = run.sources['align'].document

    def document(i):
        d = good(i % 1000)
        if i < 3:
            d.pieces[0] = types.SimpleNamespace()

            def load():
                raise BadItem('truncated', f'{i}.png')
            d.pieces[0] = Media(f'bad{i}', load)
        return d

    run.sources['align'] = types.SimpleNamespace(document=document)
    documents = documents_of(run, 5)
    assert len(documents) == 5 and run.report.as_dict() == {'truncated': 3}
    run.sources['align'] = types.SimpleNamespace(document=lambda i: document(0))
    with pytest.raises(BadInput, match='truncated'):
        documents_of(run, 1)


@pytest.mark.parametrize('argument',
                         ['--folders=page_examples=2', '--stage=eyes', '--mixing=stirred', '--vision_iters=0',
                          '--flamingo_lr=-1', '--preset=huge'])
def test_values_that_make_no_sense(tmp_path, argument):
    with pytest.raises(BadInput, match=argument[2:].rpartition('=')[0].rpartition('=')[2]):
        small_run(tmp_path, argument)


# ---------------------------------------------------------------------------------------------
# Reading data

def page(*pieces):
    return Document(list(pieces), 'page', 'page.html')


def bad_media(name):
    return Media(name, partial(raise_bad, name))


def raise_bad(name):
    raise BadItem('truncated', name)


def good_media(name):  # the name is the key: no two of one test may share it
    return Media(name, partial(plain_picture, name))


def plain_picture(name):
    return [Image.new('RGB', (48, 48), (len(name), 0, 0))]


class Listed:
    """A source of these documents, over and over."""

    def __init__(self, *documents):
        self.documents = documents

    def document(self, i):
        return self.documents[i % len(self.documents)]

    text = document


def test_a_page_goes_on_without_the_picture_that_cannot_be_read(tmp_path):
    run = small_run(tmp_path, '--batch=m3w=1', '--p_next=0')
    one, two = good_media('one'), good_media('two!')
    left_out = page('a', one)
    left_out.dropped = [BadItem('remote picture', 'page.html:3:1')]
    run.sources['m3w'] = Listed(page('a', bad_media('x'), 'b', one, 'c', bad_media('y'), bad_media('z'), 'd',
                                     two), page('a', one, 'bc', two, 'd'),
                                page('none', bad_media('v'), 'left'), left_out, page('a', one))
    damaged, whole, replaced, short = (train.SequenceData(run).of_source('m3w', i)[0] for i in (0, 1, 2, 3))
    assert [m.key for m in damaged.media] == ['one', 'two!'] and damaged.image_index.max() == 2
    assert [m.key for m in whole.media] == ['one', 'two!'] and [m.key for m in short.media] == ['one']
    assert replaced.media  # another page stands in its place
    assert run.report.as_dict() == {'truncated': 4, 'page without pictures': 1, 'remote picture': 1}


def test_a_damaged_picture_leaves_its_page_before_a_window_of_it_is_cut(tmp_path):
    run = small_run(tmp_path, '--batch=m3w=1', '--p_next=0', '--n_image=2')
    run.sources['m3w'] = Listed(page(good_media('one'), 'a', bad_media('x'), 'b', good_media('two'), 'c',
                                     bad_media('y'), 'd'))
    [sequence] = train.SequenceData(run).of_source('m3w', 0)
    assert [m.key for m in sequence.media] == ['one', 'two']
    assert run.report.as_dict() == {'truncated': 2}


def test_training_stops_when_most_documents_are_bad(tmp_path):
    """Never fifty in a row, and yet most of them: something is wrong with the whole source."""
    run = small_run(tmp_path, '--vision_batch=4')
    good, bad = (Document([media, 'text'], 'pair', 'list:1')
                 for media in (good_media('whole'), bad_media('cut')))
    run.sources['align'] = Listed(good, bad, bad, bad, bad)
    with pytest.raises(BadInput, match=r'align: \d+ of \d+ documents cannot be read: truncated'):
        for i in range(50):
            PairData(run).of_source('align', i)
    run.sources['ltip'] = Listed(good, good, good, bad, bad)
    for i in range(50):
        PairData(run).of_source('ltip', i)


@pytest.mark.parametrize('kind, names', [(PairData, ['align', 'ltip']), (TextData, ['text']),
                                         (train.SequenceData, ['m3w', 'vtp'])])
def test_workers_read_the_same_samples(tmp_path, kind, names):
    """Of every step, in order, from any step on; and what they could not read is known in the main
    process."""
    alone = small_run(tmp_path, '--language_batch=2')
    helped = small_run(tmp_path, '--language_batch=2', '--workers=2')
    for run in (alone, helped):
        bad = Document([bad_media('x'), 'text'], 'pair', 'list:1')
        good = Document([good_media('one'), 'text'], 'pair', 'list:2')
        run.sources['align'] = Listed(good, good, bad, good, good)
    steps = [(i, names) for i in range(3, 8)]
    ahead, data = look_ahead(kind(helped), steps), kind(alone)
    for (i, _), samples in zip(steps, ahead, strict=True):
        assert list(samples) == names
        for name in names:
            for one, two in zip(data.of_source(name, i), samples[name], strict=True):
                if kind is TextData:
                    assert one == two
                elif kind is PairData:
                    one, two = one.document, two.document
                    assert one.pieces[1:] == two.pieces[1:]
                    assert torch.equal(alone.reader.pixels(one.pieces[0]),
                                       helped.reader.pixels.kept[two.pieces[0].key])
                else:
                    assert (one.tokens == two.tokens).all() and (one.image_index == two.image_index).all()
                    assert (one.loss_mask == two.loss_mask).all()
                    assert all(torch.equal(alone.reader.pixels(a), helped.reader.pixels.kept[b.key])
                               for a, b in zip(one.media, two.media, strict=True))
    assert helped.report.as_dict() == alone.report.as_dict() == ({'truncated': 1} if kind is PairData else {})
    # It is saved, and known again after resuming.
    assert helped.reader.left_out == alone.reader.left_out == ({'x': 'truncated'} if kind is PairData else {})


def test_a_run_with_workers_ends_with_the_same_weights(tmp_path):
    """To the bit; also one that stops on the way and continues."""
    def train_with(*arguments, progress=None, stop_at=None):
        run = small_run(tmp_path, '--vision_iters=4', '--vision_batch=4', '--eval_every=2', '--log_every=1',
                        *arguments)
        torch.manual_seed(0)
        stage = train.VisionStage(run)
        if stop_at:
            evaluate, run_stop = stage.evaluate, stop_at
            stage.evaluate = lambda: (setattr(run, 'stop', run_stop), evaluate())[1]
        run.missing, run.progress = ['vision'], progress
        train.train_stage(run, stage)
        return stage.module.state_dict()
    plain, helped = train_with(), train_with('--workers=2')
    train_with('--workers=2', stop_at=OUT_OF_TIME)  # after two steps, at the evaluation; saved
    resumed = train_with('--workers=1',
                         progress=checkpoint.load(str(tmp_path / 'training.pt'), 'training'))
    for name, value in plain.items():
        assert torch.equal(value, helped[name]) and torch.equal(value, resumed[name]), name


def test_a_run_can_be_sent_to_a_worker(tmp_path):
    """Where processes are not forked (macOS, Windows), it is pickled."""
    run = small_run(tmp_path)
    data = train.SequenceData(run)
    sent = pickle.loads(pickle.dumps(Ahead(data, [(2, ['m3w', 'vtp'])])))
    samples, pixels, bad_items = sent[0]
    assert all((one.tokens == two.tokens).all() for name in ('m3w', 'vtp')
               for one, two in zip(data.of_source(name, 2), samples[name], strict=True))
    assert bad_items == []
    assert set(pixels) == {m.key for of_source in samples.values() for s in of_source for m in s.media}


def test_a_bad_source_is_known_through_workers(tmp_path):
    run = small_run(tmp_path, '--workers=1')
    run.sources['align'] = Listed(Document([bad_media('x'), 'text'], 'pair', 'list:1'))
    with pytest.raises(BadInput, match='align: 50 of 50 documents cannot be read: truncated: 1'):
        list(look_ahead(PairData(run), [(0, ['align'])]))


def test_word_dropout_leaves_out_tokens_but_never_all(tmp_path):
    """The text tower is told of fewer tokens, others each step, the same again for the same step; of each
    text at least one."""
    def step(i, share):
        run = small_run(tmp_path, '--vision_batch=16', f'--augment=word_dropout={share}')
        data = PairData(run)
        batch = data.batch(data.read(['align'], i))
        return batch.captions['align'][1]
    whole, half, again, other, most = step(0, 0.0), step(0, 0.5), step(0, 0.5), step(1, 0.5), step(0, 0.99)
    assert not (half & ~whole).any() and half.any(1).all() and torch.equal(half, again)
    assert 0.3 < half.sum() / whole.sum() < 0.75
    n = min(half.shape[1], other.shape[1])
    assert not torch.equal(half[:, :n], other[:, :n])
    # A text of which nothing would be left stays as it is.
    assert most.any(1).all() and (most == whole).all(1).any()


@pytest.mark.parametrize('arguments', [[], ['--augment=strength=1'], ['--augment=lines=0.5'],
                                       ['--align=shapes:2']])
def test_the_embedded_world_shows_both_sources_the_same_pictures(tmp_path, arguments):
    """A picture with a short and a long caption is encoded once a step. Augmented, it is two pictures, and
    they are read one after the other; so are sources of different specification."""
    run = small_run(tmp_path, '--vision_batch=16', *arguments)
    data = PairData(run)
    samples = data.read(['align', 'ltip'], 3)
    n_picture = [(len(batch.images), len(batch.captions)) for batch in map(data.batch, data.parts(samples))]
    short, long = ([pair.document for pair in pairs] for pairs in samples.values())
    assert [d.pieces[0].key for d in short] == [d.pieces[0].key for d in long]
    assert sum(len(a.pieces[1]) < len(b.pieces[1]) for a, b in zip(short, long)) > 12
    once = len({d.pieces[0].key for d in short})
    assert n_picture == {(): [(once, 2)], ('--augment=strength=1',): [(16, 1)] * 2,
                         ('--augment=lines=0.5',): [(16, 1)] * 2,
                         ('--align=shapes:2',): [(once, 1)] * 2}[tuple(arguments)]
    stage = train.VisionStage(run)
    losses, _ = in_parts(train.gradients, run, stage, samples)
    assert set(losses) == {'align', 'ltip'} and all(1 < loss < 20 for loss in losses.values())


def test_a_tokenizer_of_the_sources_knows_their_words_and_no_made_up_names(tmp_path):
    """Large enough, every word of the captions is one token; a name of the naming pages stays in pieces,
    like one that is new."""
    words = ['purple fox', 'golden lantern', 'wooden bridge', 'silver kettle', 'crooked tower',
             'striped tent']
    lines = []
    for k, text in enumerate(words):
        Image.new('RGB', (16, 16), (40 * k, 10, 200)).save(tmp_path / f'{k}.png')
        lines.append(json.dumps({'file_name': f'{k}.png', 'text': text}))
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(lines))
    run = small_run(tmp_path / 'out', f'--align={tmp_path}', '--m3w=align', '--text=align', '--ltip=',
                    '--vtp=', '--tokenizer=sources:400')
    assert all(len(run.tokenizer.encode(' ' + word)) == 1 for text in words for word in text.split())
    names = run.sources['m3w'].parts[0].names
    whole = [name for name in names if len(run.tokenizer.encode(' ' + name)) == 1]
    assert len(whole) < 0.01 * len(names), whole  # one in a few thousand is part of a word by chance
