"""What train.py computes, piece by piece."""
import types

import pytest
import torch

import train
from kit.configurator import BadInput, configure


def small_run(tmp_path, *arguments):
    config = configure(train.KEYS, [f'--out_dir={tmp_path}', '--device=cpu', '--batch_m3w=2', '--batch_align=2', '--batch_ltip=2', '--batch_vtp=2',
                                    '--vision_batch=4', '--eval_n=2', *arguments])
    train.check_values(config)
    return train.Run(config)


@pytest.fixture()
def flamingo_stage(tmp_path):
    run = small_run(tmp_path)
    torch.manual_seed(0)
    run.save_stage(train.VisionStage(run))
    run.save_stage(train.LanguageStage(run))
    stage = train.FlamingoStage(run)
    for layer in stage.module.gated:  # open the gates, or most gradients are zero
        torch.nn.init.constant_(layer.alpha_x, 0.5)
        torch.nn.init.constant_(layer.alpha_d, 0.5)
    return stage


def gradient(stage, losses):
    stage.optimizer.zero_grad()
    for weight, name in losses:
        (weight * stage.loss(name, 0)).backward()
    return torch.cat([p.grad.flatten() for p in stage.module.parameters() if p.requires_grad])


def test_accumulation_is_the_weighted_sum_of_gradients(flamingo_stage):
    """One backward pass after the other adds up to Σ λ_m ∇L_m (§2.4)."""
    lambdas = flamingo_stage.sources
    assert lambdas == {'m3w': 1.0, 'align': 0.2, 'ltip': 0.2, 'vtp': 0.03}
    together = gradient(flamingo_stage, [(weight, name) for name, weight in lambdas.items()])
    alone = sum(weight * gradient(flamingo_stage, [(1.0, name)]) for name, weight in lambdas.items())
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_a_step_changes_what_is_trained_and_nothing_else(flamingo_stage):
    before = {n: p.clone() for n, p in flamingo_stage.module.named_parameters()}
    gradient(flamingo_stage, [(1.0, 'm3w')])
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
    assert len(gates['params']) == 2 * len(flamingo_stage.module.gated) and gates['scale'] == 5.0


@pytest.mark.parametrize('kind, expected', [('constant', [0.5, 1, 1, 1]), ('linear', [0.5, 0.75, 0.5, 0.25]),
                                            ('cosine', [0.5, 0.853553, 0.5, 0.146447]), ('trapezoid', [0.5, 1, 1, 0.833333])])
def test_schedule(kind, expected):
    """Two steps of warm-up out of four; the first is not zero, or it would be wasted."""
    assert [train.schedule(kind, i, 2, 4) for i in range(4)] == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_the_same_whenever_it_is_asked_for(tmp_path):
    a, b = ((lambda i, run=small_run(tmp_path): run.batch('texts', 'text', i)) for _ in range(2))
    later = b(5)
    assert all((x == y).all() for x, y in zip(a(5), b(5))) and (later[0] == b(5)[0]).all()
    assert not (a(4)[0] == a(5)[0]).all()


def test_bad_pictures_are_replaced_and_counted(tmp_path):
    from kit.configurator import BadItem
    run = small_run(tmp_path)
    good = run.sources['align'].document

    def document(i):
        d = good(i % 1000)
        if i < 3:
            d.pieces[0] = types.SimpleNamespace()
            from data import Media

            def load():
                raise BadItem('truncated', f'{i}.png')
            d.pieces[0] = Media(f'bad{i}', load)
        return d

    run.sources['align'] = types.SimpleNamespace(document=document)
    documents = run.documents('align', 0, 5)
    assert len(documents) == 5 and run.report.as_dict() == {'truncated': 3}
    run.sources['align'] = types.SimpleNamespace(document=lambda i: document(0))
    with pytest.raises(BadInput, match='truncated'):
        run.documents('align', 0, 1)


@pytest.mark.parametrize('argument', ['--stage=eyes', '--mixing=stirred', '--vision_iters=0', '--flamingo_lr=-1', '--preset=huge'])
def test_values_that_make_no_sense(tmp_path, argument):
    with pytest.raises(BadInput, match=argument[2:argument.index('=')]):
        small_run(tmp_path, argument)
