// Greedy tokens and first logits of llama.cpp, through node-llama-cpp: one JSON request on standard input, one JSON reply on standard output.
// node llama_cpp.mjs < {"model": FILE, "lora": FILE or null, "texts": [...], "prompts": [[id, ...], ...], "count": N}
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { text } from "node:stream/consumers";

const require = createRequire(process.env.NODE_LLAMA_CPP + "/package.json");
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const request = JSON.parse(await text(process.stdin));
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error" });
const model = await llama.loadModel({ modelPath: request.model });
const lora = request.lora ? { adapters: [{ filePath: request.lora, scale: 1 }] } : undefined;
const context = await model.createContext({ contextSize: 512, sequences: 1, threads: 1, lora });
const sequence = context.getSequence();
const answers = [], logits = [];
for (const prompt of request.prompts) {
    await sequence.clearHistory();
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, { temperature: 0 })) {
        tokens.push(token);
        if (tokens.length === request.count) break;
    }
    answers.push(tokens);
    await sequence.clearHistory();
    const read = await sequence.controlledEvaluate([...prompt.slice(0, -1), [prompt.at(-1), { generateNext: { logits: true } }]]);
    const found = read.at(-1).next.logits;
    logits.push(Array.from({ length: found.size }, (_, token) => found.get(token)));
}
const reply = {
    answers, logits,
    ids: (request.texts ?? []).map((each) => Array.from(model.tokenize(each, false))),
    specialIds: (request.texts ?? []).map((each) => Array.from(model.tokenize(each, true))),
    bos: model.tokens.bos, eos: model.tokens.eos, eot: model.tokens.eot,
};
await new Promise((written) => process.stdout.write(JSON.stringify(reply), written));
await llama.dispose();
process.exit(0);
