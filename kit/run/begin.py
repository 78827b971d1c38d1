"""What each stage begins with: random weights, published ones, or those that earlier stages have left."""
from kit.contrastive import new_contrastive
from kit.copying import wire_copying
from kit.device import frozen_dtype
from kit.run import shared_words
from kit.weights import checkpoint, gpt2, nfnet
from model import GPT


def new_encoders(run):
    """-> the Contrastive that the vision stage trains: random, but for the NFNet of --nfnet"""
    contrastive = new_contrastive(run.model_config)
    if run.config.nfnet:
        contrastive.vision = nfnet(run.config.nfnet, run.model_config.dim_embed)
    return contrastive


def new_language(run):
    """-> the GPT that the language stage trains: --gpt2, or random with a few heads wired to copy; with
    captions that people wrote, its words begin as the text tower's."""
    lm = gpt2(run.config.gpt2) if run.config.gpt2 else wire_copying(GPT.from_config(run.model_config))
    return shared_words.begin(run, lm)


def load_trained(run, contrastive=None):
    """-> the trained Contrastive and GPT. Raises BadInput. contrastive: another one to load into (ablate.py)
    """
    contrastive, lm = contrastive or new_contrastive(run.model_config), GPT.from_config(run.model_config)
    trained, text = run.load_stage('vision', 'contrastive'), run.load_stage('language', 'lm')
    checkpoint.load_into(contrastive, trained['contrastive'], run.path('vision.pt'))
    checkpoint.load_into(lm, text['lm'], run.path('language.pt'))
    return contrastive.to(run.device), lm


def cast_frozen(run, flamingo):
    """Its frozen parts in the number format that trains fastest -> the Flamingo"""
    for part in flamingo.frozen:
        part.to(frozen_dtype(run.dtype, run.device, run.model_config.lm_dim))
    return flamingo
