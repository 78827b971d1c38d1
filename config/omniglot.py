"""Handwriting: characters of alphabets that training never saw, named from one drawing each, by prompting.

    python train.py config/omniglot.py --align=FOLDER --m3w=FOLDER --out_dir=out-omniglot
    python evaluate.py --out_dir=out-omniglot --folder=FOLDER --class_depth=2 --split=val \\
        --held_groups=Early_Aramaic,Greek --trials=True --ways=2,5,20

FOLDER holds images_background_small1 and images_background_small2 of github.com/brendenlake/omniglot,
unzipped: alphabet/character/drawings.
"""
folders = (
    'class_depth=2 '  # a class is alphabet/character: Greek and Latin share names of characters
    'rotate=True '
    'held_groups=Early_Aramaic,Greek '  # never trained on; settings were chosen by their figures
    'words=2 '
    'word_centres=32 '
    'naming=0.8 '
    'mirrored=0.5 '  # or it learns the trained characters by heart
    'page_examples=32 '  # of up to 16 names
    'page_variants=1 '  # twenty drawings of each character vary enough
    'ways=20 '
    'within_group=0.7 '
    'captions_first=1600 '  # pages: 133 steps
    'ways_rise=4800'
)
ltip = ''
vtp = ''
text = 'align'
tokenizer = 'sources:2046'  # enough for a token for each of 968 classes
sizes = (
    'plain_words=True '  # the encoder's names for classes have nothing in common
    'per_image=True '
    'lm_head=2'  # few, wide heads match more finely: prompts have up to 20 names
)
image_size = 32
# Drawings stay black on white. per_image normalises each by its own mean and deviation: paper comes near
# zero, where padding is, and ink far from it, whichever of the two is darker.
vision_iters = 6000
vision_lr = 0.002
vision_batch = 128
augment = (
    'strength=1.0 '
    'colour=False '
    'warp=1.0'  # as two people's drawings differ
)
language_iters = 600
language_tokens = 128
language_batch = 12
n_image = 32
n_token = 304
n_context = 384
lm_layer = 4  # as its published figures were measured
flamingo_iters = 3200  # with half of these, 20 names are told apart four points worse
schedule = 'flamingo=cosine'
batch = 'm3w=12'
lambda_align = 0.05
