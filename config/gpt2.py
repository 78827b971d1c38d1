"""GPT-2 (124 M) reads, an ImageNet NFNet-F0 sees, and what is between them is trained, on one GPU.

The weights, once (500 MB and 290 MB; nothing is ever fetched by the program itself):

    for f in pytorch_model.bin vocab.json merges.txt; do curl -L --create-dirs -o gpt2/$f https://huggingface.co/openai-community/gpt2/resolve/main/$f; done
    curl -L -o dm_nfnet_f0.pth https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-dnf-weights/dm_nfnet_f0-604f9c3a.pth

Pictures with captions: any folder with a metadata.jsonl (README, "Your own data"). COCO's, for one (18 GB), takes three commands:

    curl -L -O http://images.cocodataset.org/zips/train2017.zip -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip
    unzip -q train2017.zip && unzip -q annotations_trainval2017.zip
    python -c "import json; a = json.load(open('annotations/captions_train2017.json')); n = {i['id']: i['file_name'] for i in a['images']}; \\
        open('train2017/metadata.jsonl', 'w').writelines(json.dumps({'file_name': n[c['image_id']], 'text': c['caption'], \\
        'split': 'train' if c['image_id'] % 100 else 'val'}) + chr(10) for c in a['annotations'])"

Then, with pages made of the same folder (--m3w=FOLDER for interleaved pages of your own):

    python train.py config/gpt2.py --align=train2017 --out_dir=out-gpt2
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py --align=train2017 --out_dir=out-gpt2

Other sizes: gpt2-medium with --lm_layer=24 --lm_dim=1024 --lm_head=16, -large with 36, 1280, 20, -xl with 48, 1600, 25; dm_nfnet_f1 with
--vision=F1, and so on.

Computed, not measured (no GPU was at hand), with the numbers of python bench.py --preset=gpt2 --device=meta, in bfloat16: 2.3 GiB of
weights, gradients and optimizer, and 0.17 GiB for each sequence that is in work (0.60 without activation checkpointing): about 10 GiB
for the batch below. A step reads 80 sequences, at most 208 pictures of 256 x 256 and about 10,000 tokens: 5.2 TFLOP for the NFNet, 5.4
for the resampler and its keys, 9.4 for the text, and a quarter more for what activation checkpointing computes again. At a third of an
A100's 312 TFLOP/s that is a quarter of a second, an hour and a half for 20,000 steps, if pictures are decoded as fast.
"""
preset = 'gpt2'
gpt2 = 'gpt2'                  # the folder
nfnet = 'dm_nfnet_f0.pth'
language_iters = 0             # taken as they are
language_batch = 32            # should it be trained after all, on up to 32 GPUs
vision_iters = 0
m3w = 'align'                  # few-shot pages made of the same pictures
ltip = ''
vtp = ''
text = 'align'
batch = 'm3w=32 align=48'
lambda_align = 0.2
flamingo_iters = 20000
flamingo_lr = 1e-4             # the paper's
schedule = 'flamingo=constant'
warmup = 1000
gate_scale = 1.0
eval_every = 1000
activation_checkpointing = True
