"""A quarter: a Flamingo a quarter as wide as nano, on two blocks (docs/questions.md, sizes).

    python train.py config/quarter.py --out_dir=out-quarter
"""
lm_layer = 2
lm_dim = 32
vision = 'quarter'
sizes = (
    'lm_head=2 xattn_head=2 xattn_head_dim=16 '
    'resampler_dim=32 resampler_head=2 resampler_head_dim=16 '
    'dim_embed=32 text_dim=32'
)
