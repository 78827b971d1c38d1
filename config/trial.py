"""Ten steps of everything: does my data work, from its files to the few-shot table?

    python train.py config/trial.py --align=FOLDER --out_dir=out-trial
"""
vision_iters = 10
vision_batch = 16
language_iters = 10
language_batch = 4
flamingo_iters = 10
batch = 'm3w=4 align=4 ltip=4 vtp=2'
eval_every = 10
eval_n = 4
test_n = 4
