"""A prompt and its answer, as sample.py's keys ask for it: written, or the likeliest of --choices."""
import torch

from kit.answers import generate, score
from kit.cli import check_range
from kit.files import BadInput
from kit.show import lettering
from kit.tasks.asker import MOST_BEAMS
from kit.tasks.controls import blank_examples
from kit.tasks.prompts import as_text


def check_answer_keys(config):
    """Raises BadInput where a key of the answer has a value that makes no sense."""
    check_range(config, 1, MOST_BEAMS, 'beam_size')
    check_range(config, 1, 10_000, 'num_samples')
    check_range(config, 1, 1 << 40, 'max_new_tokens')
    check_range(config, 0, float('inf'), 'temperature', 'top_k')
    check_range(config, 0, 2 ** 63 - 1, 'seed')


def search_options(config, device):
    """The keys of the answer -> options of kit.answers.generate"""
    return dict(beam_size=config.beam_size, temperature=config.temperature, top_k=config.top_k,
                generator=torch.Generator(device).manual_seed(config.seed))


def answers_to(document, config, asker, search):
    """-> [(answer, what --json prints of it)], several where several samples are wanted. Raises BadInput."""
    prompts = asker.prompts([document])
    if prompts['features'] is None:
        raise BadInput(f'{document.where}: has {int(prompts["length"])} tokens and 0 pictures; '
                       '<image:PATH> shows one')
    if config.choices:
        choices = [c.strip() for c in config.choices.split('|')]
        if not all(choices):
            raise BadInput('--choices: an answer is empty')
        ids = asker.candidates(choices, prompts['tokens'].shape[1], '--choices')
        [scores] = score(asker.model, candidates=[ids], **prompts)
        if config.calibrate:
            [blind] = score(asker.model, candidates=[ids], **asker.prompts([blank_examples(document)]))
            scores = [score_of - prior for score_of, prior in zip(scores, blind)]
        ranked = dict(zip(choices, scores))
        return [(max(ranked, key=ranked.get), {'choices': ranked})]
    answers = []
    for _ in range(config.num_samples):
        [(ids, log_p)] = generate(asker.model, max_new_tokens=config.max_new_tokens, **search, **prompts)
        text = asker.tokenizer.decode(ids)
        answers.append((text.strip(), {'prompt': as_text(document), 'completion': text, 'logprob': log_p}))
    return answers


def print_answers(document, truth, answers):
    """For people: the prompt, and under it each answer, or the choices, the likeliest first."""
    print(lettering.printable(as_text(document)))
    for answer, said in answers:
        if 'choices' in said:
            for choice, log_p in sorted(said['choices'].items(), key=lambda item: -item[1]):
                print(f'  {lettering.printable(choice)}  {log_p:.2f}')
        else:
            print(f'  → {lettering.printable(answer)}' + (f'   (it is: {truth})' if truth else ''))
