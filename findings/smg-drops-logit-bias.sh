#!/usr/bin/env bash
# SMG: logit_bias does not reach a gRPC worker, and nothing says so.
#
# Packages: smg 1.13.0, smg-grpc-proto 0.4.28; a worker of 40 lines that answers one token and prints
#   the sampling parameters that came.
# Behaviour: POST /v1/chat/completions and POST /v1/completions with logit_bias are answered with 200,
#   and SamplingParams, which has a field for it, has none: the reply is as if it had not been asked
#   for. min_tokens gets lost of a chat alone. What stands beside them (frequency_penalty, seed)
#   arrives.
# Seen with 1.13.0: the lines that are compared below.
# What helps: a worker's own API.
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check "smg==1.13.0" "smg-grpc-proto==0.4.28" "tokenizers==0.22.1"

cat > "$work/worker.py" <<'PY'
import json
import sys
from concurrent import futures
from pathlib import Path

import grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as rpc
from tokenizers import Tokenizer, models, pre_tokenizers

folder = Path(sys.argv[1])
tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "you": 2}, "[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(folder / "tokenizer.json"))
template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
(folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


class Worker(rpc.VllmEngineServicer):
    def HealthCheck(self, request, context):
        return pb.HealthCheckResponse(healthy=True)

    def GetModelInfo(self, request, context):
        return pb.GetModelInfoResponse(
            model_path=str(folder), tokenizer_path=str(folder), served_model_name="m",
            is_generation=True, max_context_length=4096, vocab_size=3, model_type="llama",
        )

    def GetServerInfo(self, request, context):
        return pb.GetServerInfoResponse(data_parallel_size=1)

    def Generate(self, request, context):
        params = request.sampling_params
        print(
            f"frequency_penalty {params.frequency_penalty}, seed {params.seed},"
            f" logit_bias {dict(params.logit_bias)}, min_tokens {params.min_tokens}",
            flush=True,
        )
        yield pb.GenerateResponse(
            complete=pb.GenerateComplete(output_ids=[1], finish_reason="stop", prompt_tokens=1)
        )


server = grpc.server(futures.ThreadPoolExecutor(8))
rpc.add_VllmEngineServicer_to_server(Worker(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
(folder / "port").write_text(str(port))
server.wait_for_termination()
PY

"$python" "$work/worker.py" "$work" > "$work/seen" &
until [ -s "$work/port" ]; do sleep 0.1; done
http=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
HF_HUB_OFFLINE=1 "$work/venv/bin/smg" launch --host 127.0.0.1 --port "$http" --backend vllm \
    --worker-urls "grpc://127.0.0.1:$(cat "$work/port")" --worker-startup-check-interval 1 \
    --prometheus-port "$((http + 1))" > "$work/log" 2>&1 &
for _ in $(seq 300); do
    curl -sf "http://127.0.0.1:$http/readiness" > "$work/ready" && break
    sleep 0.1
done

ask() {
    curl -s -o "$work/answer" -w "%{http_code}\n" "http://127.0.0.1:$http$1" -H 'Content-Type: application/json' -d "$2"
}
options='"max_tokens": 4, "frequency_penalty": 0.5, "seed": 7, "logit_bias": {"1": 5}, "min_tokens": 2'
chat=$(ask /v1/chat/completions '{"model": "m", "messages": [{"role": "user", "content": "hello"}], '"$options"'}')
text=$(ask /v1/completions '{"model": "m", "prompt": "hello", '"$options"'}')
printf 'chat %s, completion %s\n' "$chat" "$text" >> "$work/seen"
cat "$work/seen"
diff "$work/seen" - <<'EXPECTED'
frequency_penalty 0.5, seed 7, logit_bias {}, min_tokens 0
frequency_penalty 0.5, seed 7, logit_bias {}, min_tokens 2
chat 200, completion 200
EXPECTED
echo "as described"
