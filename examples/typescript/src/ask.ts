// One question, its answer as it comes, and what it took.
//
//     SAPWOOD_ADDRESS=127.0.0.1:50551 npm run ask -- "What is a river?"

import { SapwoodClient, SapwoodError } from "./client.js";

const question = process.argv.slice(2).join(" ") || "What is a river?";
const client = new SapwoodClient(process.env.SAPWOOD_ADDRESS);
try {
  const messages = { messages: [{ role: "user", content: question }] };
  const prompt = { $case: "messages", value: messages } as const;
  for await (const event of client.generate({
    prompt,
    sampling: { temperature: 0 },
    maxTokens: 200,
  })) {
    if (event.$case === "delta") process.stdout.write(event.value.text);
    if (event.$case === "finish") {
      const { completionTokens, decodeSteps } = event.value.usage!;
      console.log(`\n${completionTokens} tokens, all but the first in ${decodeSteps} forwards`);
    }
  }
} catch (error) {
  if (!(error instanceof SapwoodError)) throw error;
  console.error(`${error.reason || error.code}: ${error.message} ${error.fields.join(", ")}`);
  process.exitCode = 1;
} finally {
  client.close();
}
