#!/usr/bin/env bash
# Builds environments for the peers in build/peers, each with the torch of this project: `make bench-peers`.
# OpenNMT-py 3.5.1 wants torch < 2.3, which Python 3.12 has no build of, and is left out: eole is its successor.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p build/peers
grep '^torch==' constraints.txt > build/peers/constraints.txt

environment() { # NAME PACKAGE NEEDS...: the package without its pins, then what it imports
    local name=$1 package=$2
    shift 2
    "${PYTHON:-python3}" -m venv "build/peers/$name"
    "build/peers/$name/bin/pip" install --quiet -c build/peers/constraints.txt torch
    "build/peers/$name/bin/pip" install --quiet --no-deps "$package"
    "build/peers/$name/bin/pip" install --quiet -c build/peers/constraints.txt torch "$@"
}

environment eole eole==0.6.4 pyonmttok sentencepiece tokenizers uvicorn fastapi pillow requests tqdm aiohttp pyyaml pydantic \
    safetensors huggingface_hub sacrebleu rich six rapidfuzz pyahocorasick ctranslate2 subword-nmt waitress tensorboard torch-optimi
environment yoyodyne yoyodyne==0.5.27 lightning "jsonargparse[signatures]" maxwell numpy omegaconf rich torchmetrics tensorboard wandb
