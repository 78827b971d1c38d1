"""A folder of pictures with a metadata.jsonl, emoji for example:

    python train.py config/emoji.py --align=pictures --out_dir=out-emoji
    python sample.py --out_dir=out-emoji --prompt='<image:pictures/images/1f98a.png>Output:'
    python evaluate.py --out_dir=out-emoji --retrieval=pictures --split=val

Every picture is a concept of its own, seen under strong augmentation. Pages and text are made from the same
folder.
"""
m3w = 'align'       # few-shot pages made from the same pictures: captions, and made-up names that recur
ltip = ''
vtp = ''
text = 'align'      # the language model reads the captions, and names that recur beside them
# Every word of the 1,525 captions is a token. A rare word in pieces would share them with other words.
tokenizer = 'sources:4096'
sizes = 'plain_words=True'
augment = (
    'word_dropout=0.3 '  # most words occur once; a picture must also be recognised by the others
    'strength=1.0 '
    'flip=True'
)
vision_iters = 600
vision_batch = 256
vision_lr = 3e-3
language_iters = 700
language_batch = 12
language_tokens = 256
flamingo_iters = 600
gate_scale = 5.0    # its published figures were measured with this
lambda_align = 1.0
