#!/usr/bin/env bash
# Everything from the packages to the model, in runs/emoji. Whatever was stopped goes on where it was, with
# the same bits. BITDANCE names the command, and arguments are passed to all trainings (--device cuda).
set -euo pipefail
cd "$(dirname "$0")/../.."
bitdance=${BITDANCE:-bitdance}
python=${PYTHON:-python}
runs=runs/emoji
mkdir -p $runs/packages
# Each step writes a new name, which is moved when it is complete.
if [ ! -e $runs/packages/complete ]; then
    (cd $runs/packages && npm pack --silent \
        emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 emojibase-data@17.0.0)
    touch $runs/packages/complete
fi
if [ ! -e $runs/data ]; then
    rm -rf $runs/data.part
    $python recipes/emoji/dataset.py --packages $runs/packages --out $runs/data.part
    mv $runs/data.part $runs/data
fi
if [ ! -e $runs/text ]; then
    rm -rf $runs/text.part
    $python recipes/emoji/text_tokenizer.py $runs/data/train.jsonl --out $runs/text.part
    mv $runs/text.part $runs/text
fi
$bitdance train autoencoder recipes/emoji/autoencoder.toml --out $runs/autoencoder-first \
    --set optim.batch_size=32 optim.warmup=150 "$@"
$bitdance train autoencoder recipes/emoji/autoencoder.toml --init $runs/autoencoder-first \
    --out $runs/autoencoder "$@"
if [ ! -e $runs/codes ]; then
    $bitdance tokenize $runs/data/train.jsonl --captions --autoencoder $runs/autoencoder --size 64 \
        --parallel-num 4 --out $runs/codes
fi
$bitdance train text-to-image recipes/emoji/model.toml --out $runs/model-first \
    --set data.max_tokens=5120 optim.steps=3000 optim.lr=1e-3 optim.lr_end=2e-5 optim.warmup=400 \
    optim.ema_decay=0.999 optim.seed=0 "$@"
$bitdance train text-to-image recipes/emoji/model.toml --init $runs/model-first --out $runs/model "$@"
# The same on copies of the pictures that are shifted by up to two pixels, whose codes differ.
if [ ! -e $runs/codes-shifted ]; then
    $bitdance tokenize $runs/data/shifted.jsonl --captions --autoencoder $runs/autoencoder --size 64 \
        --parallel-num 4 --out $runs/codes-shifted
fi
$bitdance train text-to-image recipes/emoji/model.toml --init $runs/model --data $runs/codes-shifted \
    --out $runs/shifted-first --set optim.steps=1600 optim.lr=7e-4 optim.seed=4 \
    text_to_image.perturb_rate=0.2 "$@"
$bitdance train text-to-image recipes/emoji/model.toml --init $runs/shifted-first --data $runs/codes-shifted \
    --out $runs/shifted --set optim.steps=3600 optim.lr=7e-4 optim.ema_decay=0.998 optim.seed=6 "$@"
# The mean of both models draws what either draws better.
if [ ! -e $runs/mean ]; then
    $python recipes/emoji/average.py $runs/model/model $runs/shifted/model --out $runs/mean
fi
# The mean goes on with copies in other sizes and places, and comes back to the others. The model is in
# $runs/final/model.
if [ ! -e $runs/codes-varied ]; then
    $bitdance tokenize $runs/data/varied.jsonl --captions --autoencoder $runs/autoencoder --size 64 \
        --parallel-num 4 --out $runs/codes-varied
fi
train_on() {  # NAME INIT CODES SETTINGS
    $bitdance train text-to-image recipes/emoji/model.toml --init $runs/$2 --data $runs/$3 \
        --out $runs/$1 --set optim.autocast=bfloat16 text_to_image.perturb_rate=0.2 "${@:4}"
}
train_on varied mean codes-varied optim.steps=6000 optim.lr=1e-3 optim.warmup=200 \
    optim.ema_decay=0.998 optim.seed=11 "$@"
short=(optim.lr=4e-4 optim.warmup=30 optim.ema_decay=0.99)
train_on plain varied codes optim.steps=500 "${short[@]}" optim.seed=12 "$@"
train_on final plain codes-shifted optim.steps=600 "${short[@]}" optim.seed=13 "$@"
