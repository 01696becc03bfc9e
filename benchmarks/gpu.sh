#!/usr/bin/env bash
# All that needs a GPU, in one call of at most ten minutes: tests, times of a step, trainings.
#
#   benchmarks/gpu.sh            on a machine with a CUDA GPU
#   benchmarks/gpu.sh --dry      the same parts in tiny sizes, on any machine
#
# CARRY   folder with what such a machine lacks: wheels/*.whl, and MNIST/raw/*, FashionMNIST/raw/*, as files or .gz
# OUT     folder of logs, times (JSON) and trained runs; results.tar.gz holds all of them
# PARTS   which parts: "tests step mnist canvases long"
# LONG    file with trainings of the part `long`, a line of main.py's flags each; JOBS of them at once
#
# A part that fails or takes too long costs no other; the exit code is the number of parts that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
CARRY=${CARRY:-./.gpu} OUT=${OUT:-./gpu_results} PARTS=${PARTS:-tests step mnist canvases long} JOBS=${JOBS:-4} failed=0
LONG=${LONG:-benchmarks/gpu_long.txt}
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
exec > >(tee "$OUT/log.txt") 2>&1

dry=() canvases=(translated60 cluttered60 cluttered100)
sizes=(--tasks mnist cluttered60 --batch_sizes 128 512 2048 --steps 200 --rounds 5)
seeds=(--seeds 1 2 3)
if [ "${1:-}" = --dry ]; then
  export OMP_NUM_THREADS=1
  dry=(--task=digits --epochs=1 --num_glimpses=2 --hidden_size=16 --compile=False) canvases=(digits)
  sizes=(--tasks digits --batch_sizes 128 --steps 2 --rounds 1 --compile=False)
  seeds=(--seeds 1 "--flags=${dry[*]}")
  LONG=$OUT/long.txt
  printf -- '--run_name=long_%s\n' 1 2 > "$LONG"
fi

part() {  # part NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  [[ " $PARTS " == *" $name "* ]] || return 0
  echo "=== $name: $*"
  timeout --kill-after=10 "$limit" "$@" || { echo "=== $name FAILED ($?)"; failed=$((failed + 1)); }
  echo "=== $name: $((SECONDS - began)) s"
}

data=${DATA_DIR:-$OUT/data}
for set in MNIST FashionMNIST; do
  [ -d "$CARRY/$set/raw" ] || continue
  mkdir -p "$data/$set/raw"
  cp "$CARRY/$set/raw/"* "$data/$set/raw/"
  gunzip -f "$data/$set/raw/"*.gz 2> /dev/null
done
if compgen -G "$CARRY/wheels/*.whl" > /dev/null; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$OUT/site" "$CARRY"/wheels/*.whl
  export PYTHONPATH=$OUT/site
fi
nvidia-smi --query-gpu=name,driver_version,memory.total,utilization.gpu --format=csv 2> /dev/null || echo "no NVIDIA GPU"
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'

folders=(--ckpt_dir="$OUT/ckpt" --logs_dir="$OUT/logs" --plot_dir="$OUT/plots" --data_dir="$data")
part tests 180 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider --durations=5
part step 240 "$PYTHON" -m benchmarks.throughput --data_dir="$data" --out="$OUT/throughput.json" "${sizes[@]}"
part mnist 120 "$PYTHON" -m benchmarks.time_to_accuracy --data_dir="$data" --out="$OUT/time_to_accuracy.json" "${seeds[@]}"
for task in "${canvases[@]}"; do
  part canvases 60 "$PYTHON" main.py --task=$task --stop_after_epoch=3 --run_name="epoch_$task" "${folders[@]}" ${dry[@]+"${dry[@]}"}
done

# Several trainings share the GPU; each has checkpoints, and continues later by --resume=True.
long() {
  grep -v '^ *\(#\|$\)' "$LONG" | xargs -P "$JOBS" -I '{}' bash -c '
    name=$(sed "s/.*--run_name=\([^ ]*\).*/\1/" <<< "{}")
    '"$PYTHON"' main.py {} '"${folders[*]} ${dry[*]+"${dry[*]}"}"' > "'"$OUT"'/$name.log" 2>&1 &&
    '"$PYTHON"' main.py --run_name=$name --is_train=False '"${folders[*]}"' >> "'"$OUT"'/$name.log" 2>&1
    tail -n 2 "'"$OUT"'/$name.log"'
}
if [ "$failed" = 0 ] && [ -f "$LONG" ]; then
  export -f long
  export LONG JOBS OUT PYTHON
  part long "${LONG_SECONDS:-240}" bash -c "$(declare -p folders dry); long"
fi

nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv 2> /dev/null
rm -rf "$OUT/site" "$OUT/data"
(cd "$OUT" && tar --exclude=results.tar.gz -czf results.tar.gz -- *)
echo "=== $failed parts failed"
exit "$failed"
