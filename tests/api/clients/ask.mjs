// Asks the API a question through a client for Node with its defaults, and prints the answer. usage: node ask.mjs CLIENT URL
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamText } from "ai";
import OpenAI from "openai";

const [client, url] = process.argv.slice(2);
const model = "scripted", apiKey = "none", question = "hi";
const openai = () => new OpenAI({ baseURL: url, apiKey, maxRetries: 0 });

async function twoTurns(languageModel) {
  const first = [{ role: "user", content: question }];
  const streamed = streamText({ model: languageModel, messages: first, maxRetries: 0, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const part of streamed.textStream) text += part;
  const { messages } = await streamed.response;
  const again = [...first, ...messages, { role: "user", content: "again" }];
  const second = await generateText({ model: languageModel, messages: again, maxRetries: 0 });
  if (second.text !== text) throw new Error(`${second.text} after ${text}`);
  return text;
}

async function object(provider) {
  const served = (await openai().models.list()).data[0].id;
  const mood = { enum: ["happy", "sad"] }, properties = { mood };
  const schema = jsonSchema({ type: "object", properties, required: ["mood"], additionalProperties: false });
  const made = await generateObject({ model: provider(served), schema, prompt: question, maxRetries: 0, maxOutputTokens: 60 });
  if (!mood.enum.includes(made.object.mood)) throw new Error(JSON.stringify(made.object));
  return "Mood";
}

const clients = {
  async node_openai_chat() {
    let text = "";
    const stream = await openai().chat.completions.create({ model, messages: [{ role: "user", content: question }], stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
    return text;
  },
  async node_openai_responses() {
    const stream = openai().responses.stream({ model, input: question });
    const first = await stream.finalResponse();
    return (await openai().responses.create({ model, input: "again", previous_response_id: first.id })).output_text;
  },
  ai_sdk_openai_object: () => object(createOpenAI({ baseURL: url, apiKey })),
  ai_sdk_compatible_object: () => object(createOpenAICompatible({ name: "ours", baseURL: url, apiKey })),
  ai_sdk_openai: () => twoTurns(createOpenAI({ baseURL: url, apiKey })(model)),
  ai_sdk_compatible: () => twoTurns(createOpenAICompatible({ name: "ours", baseURL: url, apiKey })(model)),
};

console.log(`answer: ${await clients[client]()}`);
