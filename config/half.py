"""Half of everything: a Flamingo half as wide as nano, on two blocks (docs/questions.md, sizes).

    python train.py config/half.py --out_dir=out-half
"""
lm_layer = 2
lm_dim = 64
vision = 'half'
sizes = 'lm_head=2 xattn_head=2 resampler_dim=64 resampler_head=2 dim_embed=64 text_dim=64'
