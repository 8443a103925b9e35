#!/usr/bin/env bash
# The paper's runs, each with a name, on 8 GPUs. None of them was run here.
#
#     bash benchmarks/paper.sh          prints all runs: a name and a command in each line
#     bash benchmarks/paper.sh NAME     starts a run
#
# Models, data, limits, batch sizes, updates per step, learning rates, mu and schedules are those of the authors'
# launch scripts. Their 90 epochs of MATH-500 are 360 steps of 64 prompts in two updates, because they drop the
# last, incomplete batch of an epoch. Their 50 epochs of MATH algebra are 150 steps. Gradient-based weighting has
# ratios that are not clipped, and probes the decoder layers 10 to 25. The sizes of micro-batches and rollout
# batches, gradient checkpointing and the checkpoints are ours. The authors also ran fixed weights and
# hypervolume-guided weighting with the weights 0.5 0.25 0.25 and 0.25 0.375 0.375, and fixed weights with a
# decaying learning rate (--lr-power 1.03). For these, give the flags after NAME.
set -euo pipefail
cd "$(dirname "$0")/.."

common="--weights 0.334 0.333 0.333 --learning-rate 1e-6 --num-generations 8 --micro-batch-size 2 --rollout-batch-size 32
    --gradient-checkpointing --eval-every 5 --checkpoint-every 20"
qwen="--model Qwen/Qwen3-8B --max-prompt-tokens 2048 --max-new-tokens 2048"
deepseek="--model deepseek-ai/deepseek-llm-7b-chat --max-prompt-tokens 1024 --max-new-tokens 512"
math500="--dataset math-500 --prompts-per-step 64 --updates-per-step 2 --steps 360"
algebra="--dataset math-algebra --prompts-per-step 512 --updates-per-step 4 --steps 150"
gradient="--weighting gradient --clip 100 --clip-dual 100"

list_runs() {  # one run in each line: name, script and flags
    for algorithm in grpo rloo reinforce; do
        for weighting in fixed hypervolume; do
            echo "$algorithm-$weighting" "$algorithm"_dynw.py --weighting $weighting $qwen $math500
        done
        echo $algorithm-gradient "$algorithm"_dynw.py $gradient --probe-layers 0.28 0.73 --mu 1e-5 \
            --lr-power 1.03 $qwen $math500
    done
    for weighting in fixed hypervolume; do
        echo algebra-$weighting grpo_dynw.py --weighting $weighting $qwen $algebra
        echo deepseek-$weighting grpo_dynw.py --weighting $weighting $deepseek $math500
    done
    echo algebra-gradient grpo_dynw.py $gradient --probe-layers 0.28 0.73 --mu 1e-4 $qwen $algebra
    echo deepseek-gradient grpo_dynw.py $gradient --probe-layers 0.34 0.87 --mu 1e-4 $deepseek $math500
}

name="${1:-}"
shift || true
while read -r run command; do
    command=(torchrun --standalone --nproc-per-node 8 $command $common "$@")
    if [ -z "$name" ]; then
        echo "$run:" "${command[@]}"
    elif [ "$name" = "$run" ]; then
        exec "${command[@]}"
    fi
done < <(list_runs)
if [ -n "$name" ]; then
    echo "paper.sh: error: there is no run $name" >&2
    exit 2
fi
