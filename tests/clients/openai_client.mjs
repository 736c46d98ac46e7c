// OpenAI's own package for Node against the gateway at BASE_URL with API_KEY; writes what it saw as one line of JSON.
import OpenAI, { AuthenticationError, NotFoundError } from "openai";

const baseURL = process.env.BASE_URL;
const client = new OpenAI({ baseURL, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "Return exactly the text: HX-OK" }];
const seen = {};

seen.models = (await client.models.list()).data.map((model) => model.id);

const whole = await client.chat.completions.create({ model: "hx-chat", messages, max_tokens: 10, temperature: 0 });
seen.chat = whole.choices[0].message.content;
seen.model = whole.model;
seen.usage = whole.usage.total_tokens;

const pieces = [];
let last;
const stream = await client.chat.completions.create({
  model: "hx-chat",
  messages: [{ role: "user", content: "Count to 20" }],
  temperature: 0,
  max_tokens: 60,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  if (chunk.choices.length) pieces.push(chunk.choices[0].delta.content ?? "");
  last = chunk;
}
seen.stream = pieces.join("");
seen.pieces = pieces.filter((piece) => piece).length;
seen.streamUsage = last.usage?.total_tokens ?? null;

const left = await client.chat.completions.create({
  model: "hx-chat",
  messages: [{ role: "user", content: "Count to 20" }],
  stream: true,
});
for await (const chunk of left) {
  if (chunk.choices.length) break; // the client leaves in the middle
}

// Without encoding_format this package asks for base64 and decodes it itself.
const embedded = await client.embeddings.create({ model: "emb-premium", input: ["HX-OK", "ping"] });
seen.embeddings = embedded.data.map((item) => item.embedding.length);
const plain = await client.embeddings.create({ model: "emb-premium", input: "HX-OK", encoding_format: "float" });
seen.farthest = Math.max(...plain.data[0].embedding.map((value, n) => Math.abs(value - embedded.data[0].embedding[n])));

seen.unknownModel = await client.chat.completions.create({ model: "nobody", messages }).then(
  () => "answered",
  (error) => (error instanceof NotFoundError ? error.code : `${error}`),
);
seen.wrongKey = await new OpenAI({ baseURL, apiKey: "hx-wrong", maxRetries: 0 }).models.list().then(
  () => "answered",
  (error) => (error instanceof AuthenticationError ? error.code : `${error}`),
);
console.log(JSON.stringify(seen));
