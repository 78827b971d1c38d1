"""A folder of captioned pictures, a thousand to a hundred thousand: new things named, known ones described.

    python train.py config/pictures.py --align=FOLDER --out_dir=out-pictures
    python sample.py --out_dir=out-pictures --prompt='<image:a.png>Output: dax<EOC><image:b.png>Output:'
    python evaluate.py --out_dir=out-pictures --folder=FOLDER --split=val --ways=2,5,20 --shots=1,5

What the folder holds decides the tokenizer, the words, the pages and the steps: kit/run/fit.py looks, chooses
and says why, before anything is trained. Whatever is given on the command line stays as given.
"""
m3w = 'align'   # few-shot pages made of the same pictures
text = 'align'  # and the text that the language model reads
ltip = ''
vtp = ''
folders = (
    'fit=True '
    'held_share=0.1'  # where the folder has no split of its own to ask about
)
sizes = (
    'plain_words=True '  # most words of captions are rare: a new one can be short, and hardly count
    'lm_head=2'  # few, wide heads match more finely
)
feature_dropout = 0.3  # its published figures were measured with this
lm_layer = 4  # and with this
vision_lr = 3e-3
language_tokens = 384
n_token = 320
lambda_align = 0.5
batch = 'm3w=12 align=32'
