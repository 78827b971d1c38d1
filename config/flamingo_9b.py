"""The paper's Flamingo-9B: 40 layers of 4096, a gated layer before every 4th, NFNet-F6 at 320 x 320.

    python bench.py --preset=flamingo-9b --device=meta   # parameters beside the paper's, FLOPs, memory
    torchrun --standalone --nproc_per_node=8 train.py config/flamingo_9b.py \
        --m3w=PAGES --align=PAIRS --ltip=PAIRS --vtp=CLIPS --text=TEXT --out_dir=out-9b

No published weights fit these sizes, so all three stages begin at random. The data is yours (README, "Your
own data"); the paper's is not public. config/gpt2.py shows how to fetch public pictures with captions.

The batch of the contrastive stage is compared with itself and never split into micro-batches. The paper's
16,384 pairs took 512 TPUv4; on few GPUs lower vision_batch, and vision_lr with it.

Memory in bfloat16, computed and not measured: 49.7 GiB on one GPU, 11.5 on each of 8, 6.2 on each of 64,
for one sequence of 256 tokens and 5 pictures at a time (bench.py). More sequences a GPU take that many times
the activations. The paper trained its 80B for 15 days on 1,536 TPUv4; this code has not been run at this
size.
"""
preset = 'flamingo-9b'
shard = True                    # torchrun only
activation_checkpointing = True
vision_iters = 1200000
vision_batch = 16384            # pairs of each of align and ltip (appendix B.1); there at 288 x 288 pixels
vision_lr = 1e-3
schedule = 'vision=linear language=linear flamingo=constant'
language_iters = 100000         # the paper took Chinchilla; for your own model: gpt2, and language_iters=0
language_batch = 512
language_tokens = 2048
language_lr = 1e-4
folders = 'random_text=0.0'       # the text of a real model has all words
batch = (
    'm3w=256 '  # the batches of the paper's ablations; it gives no others
    'align=512 '
    'ltip=512 '
    'vtp=64'
)
# The paper's λ, which weigh sums over a sequence's tokens. Here they weigh means (FlamingoStage.losses), so
# that pairs weigh several times as much beside pages of 256 tokens: try smaller ones.
lambda_m3w = 1.0
lambda_align = 0.2
lambda_ltip = 0.2
lambda_vtp = 0.03
flamingo_iters = 500000
flamingo_lr = 1e-4
warmup = 5000                   # in every stage; the paper's contrastive stage has none
gate_scale = 1.0
feature_dropout = 0.0
augment = 'strength=1.0 flip=True'
micro_batches = 4
eval_every = 1000
