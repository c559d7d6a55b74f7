// A client over the stubs that `npm run generate` makes of the contract.
//
// - A request is what the contract says, any part of it left out; see proto/sapwood/v1.
// - Replies are read by `for await`. Leaving the loop early cancels the reply.
// - Every failure is a SapwoodError, whose `reason` is a name of the contract's table.

import {
  type ChannelCredentials,
  credentials,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import { BadRequest, ErrorInfo, RetryInfo, Status } from "./generated/google/rpc/details.js";
import {
  type DeepPartial,
  type Finish,
  GenerateRequest,
  type GenerateResponse,
  GenerationServiceClient,
  type GetModelResponse,
} from "./generated/sapwood/v1/generation.js";

export interface ConnectOptions {
  /** What `sapwood token new` printed. Needs TLS, or a unix socket. */
  token?: string;
  /** `credentials.createSsl(...)` for an address that a network reaches. */
  channel?: ChannelCredentials;
}

export interface CallOptions {
  /** The whole call's time, in milliseconds; without it there is no limit. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface Reply {
  text: string;
  thinking: string;
  tokenIds: number[];
  finish: Finish;
}

export class SapwoodError extends Error {
  /** A name of grpc's status codes: "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", ... */
  readonly code: string;
  /** Of the contract's table, "BAD_REQUEST" or "QUEUE_FULL"; empty where the daemon gave none. */
  readonly reason: string = "";
  /** The fields that are wrong, as paths. */
  readonly fields: string[] = [];
  /** When to come again, where that makes sense. */
  readonly retryAfterMs?: number;

  constructor(error: ServiceError) {
    super(error.details || error.message);
    this.name = "SapwoodError";
    this.code = status[error.code] ?? "UNKNOWN";
    const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
    if (packed === undefined || typeof packed === "string") return;
    for (const detail of Status.decode(packed).details) {
      if (detail.typeUrl.endsWith("/google.rpc.ErrorInfo")) {
        this.reason = ErrorInfo.decode(detail.value).reason;
      } else if (detail.typeUrl.endsWith("/google.rpc.BadRequest")) {
        const { fieldViolations } = BadRequest.decode(detail.value);
        this.fields = fieldViolations.map((violation) => violation.field);
      } else if (detail.typeUrl.endsWith("/google.rpc.RetryInfo")) {
        const delay = RetryInfo.decode(detail.value).retryDelay;
        if (delay) this.retryAfterMs = Number(delay.seconds) * 1000 + delay.nanos / 1e6;
      }
    }
  }
}

export class SapwoodClient {
  readonly #stub: GenerationServiceClient;
  readonly #metadata = new Metadata();

  /** @param address `HOST:PORT` or `unix:PATH`. */
  constructor(address = "127.0.0.1:50551", { token, channel }: ConnectOptions = {}) {
    this.#stub = new GenerationServiceClient(address, channel ?? credentials.createInsecure());
    if (token) this.#metadata.set("authorization", `Bearer ${token}`);
  }

  /** The events of one reply, as steps commit them: prefill, deltas, one finish. */
  async *generate(
    request: DeepPartial<GenerateRequest>,
    { timeoutMs, signal }: CallOptions = {},
  ): AsyncGenerator<NonNullable<GenerateResponse["event"]>> {
    signal?.throwIfAborted();
    const whole = GenerateRequest.fromPartial(request);
    const call = this.#stub.generate(whole, this.#metadata, deadlineOf(timeoutMs));
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
    try {
      for await (const response of call as AsyncIterable<GenerateResponse>) {
        if (response.event) yield response.event;
      }
    } catch (error) {
      throw new SapwoodError(error as ServiceError);
    } finally {
      signal?.removeEventListener("abort", cancel);
      call.cancel(); // it would go on without a reader
    }
  }

  /** Reads one reply to its end. */
  async reply(request: DeepPartial<GenerateRequest>, options?: CallOptions): Promise<Reply> {
    const reply: Omit<Reply, "finish"> = { text: "", thinking: "", tokenIds: [] };
    for await (const event of this.generate(request, options)) {
      if (event.$case === "delta") {
        reply.text += event.value.text;
        reply.thinking += event.value.thinking;
        reply.tokenIds.push(...event.value.tokenIds);
      } else if (event.$case === "finish") {
        return { ...reply, finish: event.value };
      }
    }
    throw new Error("the stream ended before the reply did");
  }

  getModel({ timeoutMs = 30_000 }: CallOptions = {}): Promise<GetModelResponse> {
    return new Promise((resolve, reject) => {
      this.#stub.getModel({}, this.#metadata, deadlineOf(timeoutMs), (error, model) =>
        error ? reject(new SapwoodError(error)) : resolve(model),
      );
    });
  }

  close(): void {
    this.#stub.close();
  }
}

function deadlineOf(timeoutMs?: number): { deadline?: number } {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}
