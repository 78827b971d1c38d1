"""GPT-2 (124 M) reads, an ImageNet NFNet-F0 sees, and what is between them is trained, on one GPU.

Fetch the weights once (550 MB and 290 MB; the program itself never fetches anything):

    hub=https://huggingface.co/openai-community/gpt2/resolve/main
    for f in config.json model.safetensors tokenizer.json; do curl -L --create-dirs -o gpt2/$f $hub/$f; done
    timm=https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-dnf-weights
    curl -L -o dm_nfnet_f0.pth $timm/dm_nfnet_f0-604f9c3a.pth

Pictures with captions are any folder with a metadata.jsonl (README, "Your own data"). COCO, for one (18 GB):

    coco=http://images.cocodataset.org
    curl -L -O $coco/zips/train2017.zip -O $coco/annotations/annotations_trainval2017.zip
    unzip -q train2017.zip && unzip -q annotations_trainval2017.zip
    python -c "import json; a = json.load(open('annotations/captions_train2017.json')); \\
        n = {i['id']: i['file_name'] for i in a['images']}; \\
        open('train2017/metadata.jsonl', 'w').writelines(json.dumps({ \\
        'file_name': n[c['image_id']], 'text': c['caption'], \\
        'split': 'train' if c['image_id'] % 100 else 'val'}) + chr(10) for c in a['annotations'])"

Then train, with pages made from the same folder (--m3w=FOLDER for interleaved pages of your own):

    python train.py config/gpt2.py --align=train2017 --out_dir=out-gpt2
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py --align=train2017 --out_dir=out-gpt2

Other sizes are read from the files: give --gpt2=FOLDER with gpt2-medium, -large or -xl, or --nfnet=FILE with
dm_nfnet_f1 and so on, and nothing else. (An F1 was made for pictures of 320 pixels: --image_size=320.)

Memory in bfloat16, computed by python bench.py --preset=gpt2 --n_image=12 --device=meta and not measured: 2.3
GiB of weights, gradients and optimizer, and at most 0.19 GiB for each sequence of a batch (0.71 without
activation checkpointing), at most 18 GiB for the batch below. Time: a step reads 80 sequences, at most 432
pictures of 256 x 256 and about 10,000 tokens: 10.7 TFLOP for the NFNet, 11.2 for the resampler and its keys,
9.4 for the text, and a quarter more for what activation checkpointing computes again. At a third of an A100's
312 TFLOP/s that is 0.4 seconds, or two hours for 20,000 steps, if pictures are decoded as fast.
"""
preset = 'gpt2'
gpt2 = 'gpt2'                  # the folder
nfnet = 'dm_nfnet_f0.pth'
language_iters = 0             # take the weights as they are
language_batch = 32            # if you train them after all, on up to 32 GPUs
vision_iters = 0
m3w = 'align'                  # few-shot pages made from the same pictures, of 6 to 12 examples: ...
n_image = 12                   # ... with the paper's N = 5, a naming page would teach 2 names only
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
